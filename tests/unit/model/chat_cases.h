/* chat_cases.h: conversations as each template's own program prints them.
 *
 * The expected texts were printed by Jinja 3.1 running the template text that stands beside them,
 * with trim_blocks and lstrip_blocks as the models' authors use it, <s> for the beginning-of-text
 * token and </s> for the end. NULL: the template raises an exception. "Without its tools" means
 * that the branches for tools, which chat messages never reach, are left out. */
#ifndef TESTS_UNIT_MODEL_CHAT_CASES_H
#define TESTS_UNIT_MODEL_CHAT_CASES_H

#include <stdbool.h>
#include <stddef.h>

struct case_message {
    const char *role, *content;
};

/* Ends with a message without a role. */
static const struct case_message case_conversations[][8] = {
    {{"system", " Be brief. "},
     {"user", " Hello "},
     {"assistant", "<think>\nhm\n</think>\n\n Hi \n"},
     {"user", "Bye\302\240"}},
    {{"user", "What is tar?"}},
    {{"system", "s"}, {"user", "   "}},
    {{"user", "a"}, {"user", "b"}},
    {{"system", "s"}, {"system", "t"}, {"user", "u"}, {"assistant", ""}, {"user", "\n\nv\n"}},
    {{"user", "a"},
     {"assistant", "<think>\n\n\nr\n\n</think>\nans</think>\nz"},
     {"assistant", "second"}},
};

#define N_CASE_CONVERSATIONS 6

struct case_template {
    const char *name, *family, *text;
    /* with and without a generation prompt */
    const char *expected[N_CASE_CONVERSATIONS][2];
};

/* clang-format off */
static const struct case_template case_templates[] = {
    {"chatml (the embedded model)", "chatml",
     "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['c"
     "ontent'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_"
     "start|>assistant\\n' }}{% endif %}",
     {
      {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|>\n<|im_start|>user\nBye\302\240<|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|>\n<|im_start|>user\nBye\302\240<|im_end|>\n"},
      {"<|im_start|>user\nWhat is tar?<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\nWhat is tar?<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"},
      {"<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n"},
      {"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n"
       "\n\nr\n\n</think>\nans</think>\nz<|im_end|>\n<|im_start|>assistant\n"
       "second<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n"
       "\n\nr\n\n</think>\nans</think>\nz<|im_end|>\n<|im_start|>assistant\n"
       "second<|im_end|>\n"},
     }},
    {"chatml (Qwen 2)", "chatml",
     "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
     "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
     "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|i"
     "m_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant"
     "\n' }}{% endif %}",
     {
      {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|>\n<|im_start|>user\nBye\302\240<|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|>\n<|im_start|>user\nBye\302\240<|im_end|>\n"},
      {"<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
       "What is tar?<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
       "What is tar?<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"},
      {"<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
       "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
       "a<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n"},
      {"<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
       "a<|im_end|>\n<|im_start|>assistant\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|im_end|>\n<|im_start|>assistant\nsecond<|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
       "a<|im_end|>\n<|im_start|>assistant\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|im_end|>\n<|im_start|>assistant\nsecond<|im_end|>\n"},
     }},
    {"chatml (Qwen 2.5, without its tools)", "chatml",
     "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + message"
     "s[0]['content'] + '<|im_end|>\\n' }}\n{%- else %}\n    {{- '<|im_start|>system\\nYou"
     " are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}\n"
     "{%- endif %}\n{%- for message in messages %}\n    {%- if (message.role == \"user\") "
     "or (message.role == \"system\" and not loop.first) or (message.role == \"assistant\""
     " and not message.tool_calls) %}\n        {{- '<|im_start|>' + message.role + '\\n' +"
     " message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n"
     "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }"
     "}\n{%- endif %}\n",
     {
      {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|>\n<|im_start|>user\nBye\302\240<|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|>\n<|im_start|>user\nBye\302\240<|im_end|>\n"},
      {"<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assist"
       "ant.<|im_end|>\n<|im_start|>user\nWhat is tar?<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assist"
       "ant.<|im_end|>\n<|im_start|>user\nWhat is tar?<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"},
      {"<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assist"
       "ant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>user\n"
       "b<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assist"
       "ant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>user\n"
       "b<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n"},
      {"<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assist"
       "ant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
       "<think>\n\n\nr\n\n</think>\nans</think>\nz<|im_end|>\n<|im_start|>assistant\n"
       "second<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assist"
       "ant.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
       "<think>\n\n\nr\n\n</think>\nans</think>\nz<|im_end|>\n<|im_start|>assistant\n"
       "second<|im_end|>\n"},
     }},
    {"chatml (Qwen 3, without its tools)", "chatml",
     "{%- if messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0"
     "].content + '<|im_end|>\\n' }}\n{%- endif %}\n{%- set ns = namespace(multi_step_tool"
     "=true, last_query_index=messages|length - 1) %}\n{%- for message in messages[::-1] %"
     "}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
     "    {%- if ns.multi_step_tool and message.role == \"user\" and message.content is st"
     "ring and not(message.content.startswith('<tool_response>') and message.content.endsw"
     "ith('</tool_response>')) %}\n        {%- set ns.multi_step_tool = false %}\n"
     "        {%- set ns.last_query_index = index %}\n    {%- endif %}\n"
     "{%- endfor %}\n{%- for message in messages %}\n    {%- set content = message.content"
     " %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not lo"
     "op.first) %}\n        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_en"
     "d|>' + '\\n' }}\n    {%- elif message.role == \"assistant\" and not message.tool_cal"
     "ls %}\n        {%- set reasoning_content = '' %}\n        {%- if '</think>' in conte"
     "nt %}\n            {%- set reasoning_content = content.split('</think>')[0].rstrip('"
     "\\n').split('<think>')[-1].lstrip('\\n') %}\n            {%- set content = content.s"
     "plit('</think>')[-1].lstrip('\\n') %}\n        {%- endif %}\n"
     "        {%- if loop.index0 > ns.last_query_index %}\n            {%- if loop.last or"
     " (not loop.last and reasoning_content) %}\n                {{- '<|im_start|>' + mess"
     "age.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + "
     "content.lstrip('\\n') }}\n            {%- else %}\n                {{- '<|im_start|>"
     "' + message.role + '\\n' + content }}\n            {%- endif %}\n"
     "        {%- else %}\n            {{- '<|im_start|>' + message.role + '\\n' + content"
     " }}\n        {%- endif %}\n        {{- '<|im_end|>\\n' }}\n    {%- endif %}\n"
     "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }"
     "}\n{%- endif %}",
     {
      {"<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n Hi \n<|im_end|>\n<|im_start|>user\n"
       "Bye\302\240<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\n"
       " Hello <|im_end|>\n<|im_start|>assistant\n Hi \n<|im_end|>\n<|im_start|>user\n"
       "Bye\302\240<|im_end|>\n"},
      {"<|im_start|>user\nWhat is tar?<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\nWhat is tar?<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n   <|im_end|>\n"},
      {"<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
       "<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"},
      {"<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>system\ns<|im_end|>\n<|im_start|>system\nt<|im_end|>\n"
       "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
       "<|im_start|>user\n\n\nv\n<|im_end|>\n"},
      {"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n"
       "r\n</think>\n\nz<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
       "</think>\n\nsecond<|im_end|>\n<|im_start|>assistant\n",
       "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n"
       "r\n</think>\n\nz<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
       "</think>\n\nsecond<|im_end|>\n"},
     }},
    {"llama2", "llama2",
     "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set"
     " system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages"
     " %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% i"
     "f (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conver"
     "sation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if l"
     "oop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system"
     "_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = mes"
     "sage['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST"
     "] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '"
     " + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
     {
      {"<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\n Hello [/INST] <think>\n"
       "hm\n</think>\n\n Hi </s><s>[INST] Bye [/INST]",
       "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\n Hello [/INST] <think>\n"
       "hm\n</think>\n\n Hi </s><s>[INST] Bye [/INST]"},
      {"<s>[INST] What is tar? [/INST]",
       "<s>[INST] What is tar? [/INST]"},
      {"<s>[INST] <<SYS>>\ns\n<</SYS>> [/INST]",
       "<s>[INST] <<SYS>>\ns\n<</SYS>> [/INST]"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"llama2 (own system message)", "llama2",
     "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messag"
     "es[1:] %}{% set system_message = messages[0]['content'] %}{% elif true == true and n"
     "ot '<<SYS>>' in messages[0]['content'] %}{% set loop_messages = messages %}{% set sy"
     "stem_message = 'You are careful.' %}{% else %}{% set loop_messages = messages %}{% s"
     "et system_message = false %}{% endif %}{% for message in loop_messages %}{% if (mess"
     "age['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation "
     "roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.ind"
     "ex0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_messag"
     "e + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['c"
     "ontent'] %}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + content.strip"
     "() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip()"
     " + ' ' + eos_token }}{% endif %}{% endfor %}",
     {
      {"<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\n Hello [/INST] <think>\n"
       "hm\n</think>\n\n Hi </s>[INST] Bye [/INST]",
       "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\n Hello [/INST] <think>\n"
       "hm\n</think>\n\n Hi </s>[INST] Bye [/INST]"},
      {"<s>[INST] <<SYS>>\nYou are careful.\n<</SYS>>\n\nWhat is tar? [/INST]",
       "<s>[INST] <<SYS>>\nYou are careful.\n<</SYS>>\n\nWhat is tar? [/INST]"},
      {"<s>[INST] <<SYS>>\ns\n<</SYS>> [/INST]",
       "<s>[INST] <<SYS>>\ns\n<</SYS>> [/INST]"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"llama3", "llama3",
     "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content ="
     " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n"
     "\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set cont"
     "ent = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation"
     "_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n"
     "\n' }}{% endif %}",
     {
      {"<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_i"
       "d|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_"
       "id|>\n\n<think>\nhm\n</think>\n\n Hi<|eot_id|><|start_header_id|>user<|end_header_id"
       "|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_i"
       "d|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_"
       "id|>\n\n<think>\nhm\n</think>\n\n Hi<|eot_id|><|start_header_id|>user<|end_header_id"
       "|>\n\nBye<|eot_id|>"},
      {"<s><|start_header_id|>user<|end_header_id|>\n\nWhat is tar?<|eot_id|><|start_header_"
       "id|>assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>user<|end_header_id|>\n\nWhat is tar?<|eot_id|>"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<"
       "|end_header_id|>\n\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<"
       "|end_header_id|>\n\n<|eot_id|>"},
      {"<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|e"
       "nd_header_id|>\n\nb<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|e"
       "nd_header_id|>\n\nb<|eot_id|>"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>syste"
       "m<|end_header_id|>\n\nt<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
       "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nv<|eot_id|><|start_header_id|>"
       "assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>syste"
       "m<|end_header_id|>\n\nt<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
       "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nv<|eot_id|>"},
      {"<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assista"
       "nt<|end_header_id|>\n\n<think>\n\n\nr\n\n</think>\nans</think>\n"
       "z<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nsecond<|eot_id|><|start_"
       "header_id|>assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assista"
       "nt<|end_header_id|>\n\n<think>\n\n\nr\n\n</think>\nans</think>\n"
       "z<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nsecond<|eot_id|>"},
     }},
    {"llama3 (always asks)", "llama3",
     "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content ="
     " '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['conte"
     "nt'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + c"
     "ontent %}{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_h"
     "eader_id|>\\n\\n' }}",
     {
      {"<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_i"
       "d|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_"
       "id|>\n\n<think>\nhm\n</think>\n\n Hi<|eot_id|><|start_header_id|>user<|end_header_id"
       "|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_i"
       "d|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_"
       "id|>\n\n<think>\nhm\n</think>\n\n Hi<|eot_id|><|start_header_id|>user<|end_header_id"
       "|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n"},
      {"<s><|start_header_id|>user<|end_header_id|>\n\nWhat is tar?<|eot_id|><|start_header_"
       "id|>assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>user<|end_header_id|>\n\nWhat is tar?<|eot_id|><|start_header_"
       "id|>assistant<|end_header_id|>\n\n"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<"
       "|end_header_id|>\n\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<"
       "|end_header_id|>\n\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n"},
      {"<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|e"
       "nd_header_id|>\n\nb<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|e"
       "nd_header_id|>\n\nb<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>syste"
       "m<|end_header_id|>\n\nt<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
       "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nv<|eot_id|><|start_header_id|>"
       "assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>syste"
       "m<|end_header_id|>\n\nt<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nu<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
       "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nv<|eot_id|><|start_header_id|>"
       "assistant<|end_header_id|>\n\n"},
      {"<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assista"
       "nt<|end_header_id|>\n\n<think>\n\n\nr\n\n</think>\nans</think>\n"
       "z<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nsecond<|eot_id|><|start_"
       "header_id|>assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|><|start_header_id|>assista"
       "nt<|end_header_id|>\n\n<think>\n\n\nr\n\n</think>\nans</think>\n"
       "z<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nsecond<|eot_id|><|start_"
       "header_id|>assistant<|end_header_id|>\n\n"},
     }},
    {"llama3 (3.1, without its tools)", "llama3",
     "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = \""
     "26 Jul 2024\" %}\n{%- endif %}\n{%- if messages[0]['role'] == 'system' %}\n"
     "    {%- set system_message = messages[0]['content']|trim %}\n"
     "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = \""
     "\" %}\n{%- endif %}\n{{- \"<|start_header_id|>system<|end_header_id|>\\n\\n\" }}\n"
     "{{- \"Cutting Knowledge Date: December 2023\\n\" }}\n{{- \"Today Date: \" + date_str"
     "ing + \"\\n\\n\" }}\n{{- system_message }}\n{{- \"<|eot_id|>\" }}\n"
     "{%- for message in messages %}\n    {%- if not (message.role == 'ipython' or message"
     ".role == 'tool' or 'tool_calls' in message) %}\n        {{- '<|start_header_id|>' + "
     "message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>"
     "' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
     "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
     "{%- endif %}\n",
     {
      {"<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_heade"
       "r_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n<think>\nhm\n</think>\n\n Hi<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_heade"
       "r_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n<think>\nhm\n</think>\n\n Hi<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nBye<|eot_id|>"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nWhat is tar?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\nWhat is tar?<|eot_id|>"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\n<|eot_id|>"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\na<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|><|start_header_i"
       "d|>assistant<|end_header_id|>\n\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\na<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|>"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\ns<|eot_id|><|start_header_id|>system<|end_header_id|>"
       "\n\nt<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|><|start_header"
       "_id|>assistant<|end_header_id|>\n\n<|eot_id|><|start_header_id|>user<|end_header_id|"
       ">\n\nv<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\ns<|eot_id|><|start_header_id|>system<|end_header_id|>"
       "\n\nt<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|><|start_header"
       "_id|>assistant<|end_header_id|>\n\n<|eot_id|><|start_header_id|>user<|end_header_id|"
       ">\n\nv<|eot_id|>"},
      {"<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
       "<think>\n\n\nr\n\n</think>\nans</think>\nz<|eot_id|><|start_header_id|>assistant<|en"
       "d_header_id|>\n\nsecond<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"
       "\n",
       "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 20"
       "23\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
       "\na<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
       "<think>\n\n\nr\n\n</think>\nans</think>\nz<|eot_id|><|start_header_id|>assistant<|en"
       "d_header_id|>\n\nsecond<|eot_id|>"},
     }},
    {"mistral (v1)", "mistral",
     "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (lo"
     "op.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/ass"
     "istant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST"
     "] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ "
     "message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistan"
     "t roles are supported!') }}{% endif %}{% endfor %}",
     {
      {NULL,
       NULL},
      {"<s>[INST] What is tar? [/INST]",
       "<s>[INST] What is tar? [/INST]"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"mistral (v1, first)", "mistral",
     "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (lo"
     "op.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/ass"
     "istant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST"
     "] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ "
     "message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and a"
     "ssistant roles are supported!') }}{% endif %}{% endfor %}",
     {
      {NULL,
       NULL},
      {"<s>[INST] What is tar? [/INST]",
       "<s>[INST] What is tar? [/INST]"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"mistral (v1 with a system message)", "mistral",
     "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages"
     "[0][\"content\"] %}\n    {%- set loop_messages = messages[1:] %}\n"
     "{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
     "{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if (message[\"role\"]"
     " == \"user\") != (loop.index0 % 2 == 0) %}\n        {{- raise_exception(\"After the "
     "optional system message, conversation roles must alternate user/assistant/user/assis"
     "tant/...\") }}\n    {%- endif %}\n    {%- if message[\"role\"] == \"user\" %}\n"
     "        {%- if loop.first and system_message is defined %}\n            {{- ' [INST]"
     " ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n"
     "        {%- else %}\n            {{- ' [INST] ' + message['content'] + ' [/INST]' }}"
     "\n        {%- endif %}\n    {%- elif message['role'] == 'assistant' %}\n"
     "        {{- ' ' + message['content'] + eos_token}}\n    {%- else %}\n"
     "        {{- raise_exception('Only user and assistant roles are supported') }}\n"
     "    {%- endif %}\n{%- endfor %}\n",
     {
      {"<s> [INST]  Be brief. \n\n Hello  [/INST] <think>\nhm\n</think>\n"
       "\n Hi \n</s> [INST] Bye\302\240 [/INST]",
       "<s> [INST]  Be brief. \n\n Hello  [/INST] <think>\nhm\n</think>\n"
       "\n Hi \n</s> [INST] Bye\302\240 [/INST]"},
      {"<s> [INST] What is tar? [/INST]",
       "<s> [INST] What is tar? [/INST]"},
      {"<s> [INST] s\n\n    [/INST]",
       "<s> [INST] s\n\n    [/INST]"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"mistral (v3, without its tools)", "mistral",
     "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages"
     "[0][\"content\"] %}\n    {%- set loop_messages = messages[1:] %}\n"
     "{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
     "{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if (message[\"role\"]"
     " == \"user\") != (loop.index0 % 2 == 0) %}\n        {{- raise_exception(\"After the "
     "optional system message, conversation roles must alternate user/assistant/user/assis"
     "tant/...\") }}\n    {%- endif %}\n    {%- if message[\"role\"] == \"user\" %}\n"
     "        {%- if loop.last and system_message is defined %}\n            {{- \"[INST] "
     "\" + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n"
     "        {%- else %}\n            {{- \"[INST] \" + message[\"content\"] + \"[/INST]\""
     " }}\n        {%- endif %}\n    {%- elif message[\"role\"] == \"assistant\" %}\n"
     "        {{- \" \" + message[\"content\"]|trim + eos_token}}\n"
     "    {%- else %}\n        {{- raise_exception(\"Only user and assistant roles are sup"
     "ported\") }}\n    {%- endif %}\n{%- endfor %}\n",
     {
      {"<s>[INST]  Hello [/INST] <think>\nhm\n</think>\n\n Hi</s>[INST]  Be brief. \n"
       "\nBye\302\240[/INST]",
       "<s>[INST]  Hello [/INST] <think>\nhm\n</think>\n\n Hi</s>[INST]  Be brief. \n"
       "\nBye\302\240[/INST]"},
      {"<s>[INST] What is tar?[/INST]",
       "<s>[INST] What is tar?[/INST]"},
      {"<s>[INST] s\n\n   [/INST]",
       "<s>[INST] s\n\n   [/INST]"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"mistral (v3 tekken, without its tools)", "mistral",
     "{%- if messages[0][\"role\"] == \"system\" %}\n    {%- set system_message = messages"
     "[0][\"content\"] %}\n    {%- set loop_messages = messages[1:] %}\n"
     "{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
     "{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if (message[\"role\"]"
     " == \"user\") != (loop.index0 % 2 == 0) %}\n        {{- raise_exception(\"After the "
     "optional system message, conversation roles must alternate user/assistant/user/assis"
     "tant/...\") }}\n    {%- endif %}\n    {%- if message[\"role\"] == \"user\" %}\n"
     "        {%- if loop.last and system_message is defined %}\n            {{- \"[INST]\""
     " + system_message + \"\\n\\n\" + message[\"content\"] + \"[/INST]\" }}\n"
     "        {%- else %}\n            {{- \"[INST]\" + message[\"content\"] + \"[/INST]\""
     " }}\n        {%- endif %}\n    {%- elif message[\"role\"] == \"assistant\" %}\n"
     "        {{- message[\"content\"] + eos_token}}\n    {%- endif %}\n"
     "{%- endfor %}\n",
     {
      {"<s>[INST] Hello [/INST]<think>\nhm\n</think>\n\n Hi \n</s>[INST] Be brief. \n"
       "\nBye\302\240[/INST]",
       "<s>[INST] Hello [/INST]<think>\nhm\n</think>\n\n Hi \n</s>[INST] Be brief. \n"
       "\nBye\302\240[/INST]"},
      {"<s>[INST]What is tar?[/INST]",
       "<s>[INST]What is tar?[/INST]"},
      {"<s>[INST]s\n\n   [/INST]",
       "<s>[INST]s\n\n   [/INST]"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"gemma", "gemma",
     "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System ro"
     "le not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] "
     "== 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must a"
     "lternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == "
     "'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% "
     "endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_t"
     "urn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{%"
     " endif %}",
     {
      {NULL,
       NULL},
      {"<s><start_of_turn>user\nWhat is tar?<end_of_turn>\n<start_of_turn>model\n",
       "<s><start_of_turn>user\nWhat is tar?<end_of_turn>\n"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"gemma (3, without its images)", "gemma",
     "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
     "    {%- set first_user_prefix = messages[0]['content'] + '\n\n"
     "' -%}\n    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n"
     "    {%- set first_user_prefix = \"\" -%}\n    {%- set loop_messages = messages -%}\n"
     "{%- endif -%}\n{%- for message in loop_messages -%}\n    {%- if (message['role'] == "
     "'user') != (loop.index0 % 2 == 0) -%}\n        {{ raise_exception(\"Conversation rol"
     "es must alternate user/assistant/user/assistant/...\") }}\n    {%- endif -%}\n"
     "    {%- if (message['role'] == 'assistant') -%}\n        {%- set role = \"model\" -%"
     "}\n    {%- else -%}\n        {%- set role = message['role'] -%}\n"
     "    {%- endif -%}\n    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if lo"
     "op.first else \"\") }}\n    {{- message['content'] | trim -}}\n"
     "    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n{%- if add_generation_prompt -%}\n"
     "    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n",
     {
      {"<s><start_of_turn>user\n Be brief. \n\nHello<end_of_turn>\n<start_of_turn>model\n"
       "<think>\nhm\n</think>\n\n Hi<end_of_turn>\n<start_of_turn>user\n"
       "Bye<end_of_turn>\n<start_of_turn>model\n",
       "<s><start_of_turn>user\n Be brief. \n\nHello<end_of_turn>\n<start_of_turn>model\n"
       "<think>\nhm\n</think>\n\n Hi<end_of_turn>\n<start_of_turn>user\n"
       "Bye<end_of_turn>\n"},
      {"<s><start_of_turn>user\nWhat is tar?<end_of_turn>\n<start_of_turn>model\n",
       "<s><start_of_turn>user\nWhat is tar?<end_of_turn>\n"},
      {"<s><start_of_turn>user\ns\n\n<end_of_turn>\n<start_of_turn>model\n",
       "<s><start_of_turn>user\ns\n\n<end_of_turn>\n"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
    {"phi3 (mini, first)", "phi3",
     "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}{{'<"
     "|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n"
     "'}}{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n"
     "'}}{% endif %}{% endfor %}",
     {
      {"<s><|user|>\n Hello <|end|>\n<|assistant|>\n<think>\nhm\n</think>\n"
       "\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n<|assistant|>\n",
       "<s><|user|>\n Hello <|end|>\n<|assistant|>\n<think>\nhm\n</think>\n"
       "\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n<|assistant|>\n"},
      {"<s><|user|>\nWhat is tar?<|end|>\n<|assistant|>\n",
       "<s><|user|>\nWhat is tar?<|end|>\n<|assistant|>\n"},
      {"<s><|user|>\n   <|end|>\n<|assistant|>\n",
       "<s><|user|>\n   <|end|>\n<|assistant|>\n"},
      {"<s><|user|>\na<|end|>\n<|assistant|>\n<|user|>\nb<|end|>\n<|assistant|>\n",
       "<s><|user|>\na<|end|>\n<|assistant|>\n<|user|>\nb<|end|>\n<|assistant|>\n"},
      {"<s><|user|>\nu<|end|>\n<|assistant|>\n<|end|>\n<|user|>\n\n\n"
       "v\n<|end|>\n<|assistant|>\n",
       "<s><|user|>\nu<|end|>\n<|assistant|>\n<|end|>\n<|user|>\n\n\n"
       "v\n<|end|>\n<|assistant|>\n"},
      {"<s><|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\nsecond<|end|>\n",
       "<s><|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\nsecond<|end|>\n"},
     }},
    {"phi3 (mini)", "phi3",
     "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n"
     "' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|"
     ">\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{"
     "'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if a"
     "dd_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
     {
      {"<|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n"
       "<|assistant|>\n",
       "<|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n"
       "</s>"},
      {"<|user|>\nWhat is tar?<|end|>\n<|assistant|>\n",
       "<|user|>\nWhat is tar?<|end|>\n</s>"},
      {"<|system|>\ns<|end|>\n<|user|>\n   <|end|>\n<|assistant|>\n",
       "<|system|>\ns<|end|>\n<|user|>\n   <|end|>\n</s>"},
      {"<|user|>\na<|end|>\n<|user|>\nb<|end|>\n<|assistant|>\n",
       "<|user|>\na<|end|>\n<|user|>\nb<|end|>\n</s>"},
      {"<|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n<|assistant|>\n",
       "<|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n</s>"},
      {"<|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n<|assistant|>\n",
       "<|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n</s>"},
     }},
    {"phi3 (3.5)", "phi3",
     "{% for message in messages %}{% if message['role'] == 'system' and message['content'"
     "] %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == "
     "'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] "
     "== 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n"
     "'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n"
     "' }}{% else %}{{ eos_token }}{% endif %}",
     {
      {"<|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n"
       "<|assistant|>\n",
       "<|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n"
       "</s>"},
      {"<|user|>\nWhat is tar?<|end|>\n<|assistant|>\n",
       "<|user|>\nWhat is tar?<|end|>\n</s>"},
      {"<|system|>\ns<|end|>\n<|user|>\n   <|end|>\n<|assistant|>\n",
       "<|system|>\ns<|end|>\n<|user|>\n   <|end|>\n</s>"},
      {"<|user|>\na<|end|>\n<|user|>\nb<|end|>\n<|assistant|>\n",
       "<|user|>\na<|end|>\n<|user|>\nb<|end|>\n</s>"},
      {"<|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n<|assistant|>\n",
       "<|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n</s>"},
      {"<|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n<|assistant|>\n",
       "<|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n</s>"},
     }},
    {"phi3 (small)", "phi3",
     "{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n"
     "' + message['content'] + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ "
     "'<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
     {
      {"<s><|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n"
       "<|assistant|>\n<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\n"
       "Bye\302\240<|end|>\n<|assistant|>\n",
       "<s><|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n"
       "<|assistant|>\n<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\n"
       "Bye\302\240<|end|>\n</s>"},
      {"<s><|user|>\nWhat is tar?<|end|>\n<|assistant|>\n",
       "<s><|user|>\nWhat is tar?<|end|>\n</s>"},
      {"<s><|system|>\ns<|end|>\n<|user|>\n   <|end|>\n<|assistant|>\n",
       "<s><|system|>\ns<|end|>\n<|user|>\n   <|end|>\n</s>"},
      {"<s><|user|>\na<|end|>\n<|user|>\nb<|end|>\n<|assistant|>\n",
       "<s><|user|>\na<|end|>\n<|user|>\nb<|end|>\n</s>"},
      {"<s><|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n<|assistant|>\n",
       "<s><|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n</s>"},
      {"<s><|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n<|assistant|>\n",
       "<s><|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n</s>"},
     }},
    {"phi3 (vision)", "phi3",
     "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\\n' + message['cont"
     "ent'] + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt and messages[-1]['rol"
     "e'] != 'assistant' %}{{- '<|assistant|>\\n' -}}{% endif %}",
     {
      {"<|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n"
       "<|assistant|>\n",
       "<|system|>\n Be brief. <|end|>\n<|user|>\n Hello <|end|>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n<|end|>\n<|user|>\nBye\302\240<|end|>\n"},
      {"<|user|>\nWhat is tar?<|end|>\n<|assistant|>\n",
       "<|user|>\nWhat is tar?<|end|>\n"},
      {"<|system|>\ns<|end|>\n<|user|>\n   <|end|>\n<|assistant|>\n",
       "<|system|>\ns<|end|>\n<|user|>\n   <|end|>\n"},
      {"<|user|>\na<|end|>\n<|user|>\nb<|end|>\n<|assistant|>\n",
       "<|user|>\na<|end|>\n<|user|>\nb<|end|>\n"},
      {"<|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n<|assistant|>\n",
       "<|system|>\ns<|end|>\n<|system|>\nt<|end|>\n<|user|>\nu<|end|>\n"
       "<|assistant|>\n<|end|>\n<|user|>\n\n\nv\n<|end|>\n"},
      {"<|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n",
       "<|user|>\na<|end|>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\n"
       "ans</think>\nz<|end|>\n<|assistant|>\nsecond<|end|>\n"},
     }},
    {"phi3 (4 mini, without its tools)", "phi3",
     "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] +"
     " '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else "
     "%}{{ eos_token }}{% endif %}",
     {
      {"<|system|> Be brief. <|end|><|user|> Hello <|end|><|assistant|><think>\n"
       "hm\n</think>\n\n Hi \n<|end|><|user|>Bye\302\240<|end|><|assistant|>",
       "<|system|> Be brief. <|end|><|user|> Hello <|end|><|assistant|><think>\n"
       "hm\n</think>\n\n Hi \n<|end|><|user|>Bye\302\240<|end|></s>"},
      {"<|user|>What is tar?<|end|><|assistant|>",
       "<|user|>What is tar?<|end|></s>"},
      {"<|system|>s<|end|><|user|>   <|end|><|assistant|>",
       "<|system|>s<|end|><|user|>   <|end|></s>"},
      {"<|user|>a<|end|><|user|>b<|end|><|assistant|>",
       "<|user|>a<|end|><|user|>b<|end|></s>"},
      {"<|system|>s<|end|><|system|>t<|end|><|user|>u<|end|><|assistant|><|end|><|user|>\n"
       "\nv\n<|end|><|assistant|>",
       "<|system|>s<|end|><|system|>t<|end|><|user|>u<|end|><|assistant|><|end|><|user|>\n"
       "\nv\n<|end|></s>"},
      {"<|user|>a<|end|><|assistant|><think>\n\n\nr\n\n</think>\nans</think>\n"
       "z<|end|><|assistant|>second<|end|><|assistant|>",
       "<|user|>a<|end|><|assistant|><think>\n\n\nr\n\n</think>\nans</think>\n"
       "z<|end|><|assistant|>second<|end|></s>"},
     }},
    {"phi4", "phi4",
     "{% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>sy"
     "stem<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'us"
     "er') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif ("
     "message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + message['con"
     "tent'] + '<|im_end|>'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im"
     "_start|>assistant<|im_sep|>' }}{% endif %}",
     {
      {"<|im_start|>system<|im_sep|> Be brief. <|im_end|><|im_start|>user<|im_sep|> Hello <|"
       "im_end|><|im_start|>assistant<|im_sep|><think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|><|im_start|>user<|im_sep|>Bye\302\240<|im_end|><|im_start|>assista"
       "nt<|im_sep|>",
       "<|im_start|>system<|im_sep|> Be brief. <|im_end|><|im_start|>user<|im_sep|> Hello <|"
       "im_end|><|im_start|>assistant<|im_sep|><think>\nhm\n</think>\n"
       "\n Hi \n<|im_end|><|im_start|>user<|im_sep|>Bye\302\240<|im_end|>"},
      {"<|im_start|>user<|im_sep|>What is tar?<|im_end|><|im_start|>assistant<|im_sep|>",
       "<|im_start|>user<|im_sep|>What is tar?<|im_end|>"},
      {"<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>user<|im_sep|>   <|im_end|><|im_s"
       "tart|>assistant<|im_sep|>",
       "<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>user<|im_sep|>   <|im_end|>"},
      {"<|im_start|>user<|im_sep|>a<|im_end|><|im_start|>user<|im_sep|>b<|im_end|><|im_start"
       "|>assistant<|im_sep|>",
       "<|im_start|>user<|im_sep|>a<|im_end|><|im_start|>user<|im_sep|>b<|im_end|>"},
      {"<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>system<|im_sep|>t<|im_end|><|im_s"
       "tart|>user<|im_sep|>u<|im_end|><|im_start|>assistant<|im_sep|><|im_end|><|im_start|>"
       "user<|im_sep|>\n\nv\n<|im_end|><|im_start|>assistant<|im_sep|>",
       "<|im_start|>system<|im_sep|>s<|im_end|><|im_start|>system<|im_sep|>t<|im_end|><|im_s"
       "tart|>user<|im_sep|>u<|im_end|><|im_start|>assistant<|im_sep|><|im_end|><|im_start|>"
       "user<|im_sep|>\n\nv\n<|im_end|>"},
      {"<|im_start|>user<|im_sep|>a<|im_end|><|im_start|>assistant<|im_sep|><think>\n"
       "\n\nr\n\n</think>\nans</think>\nz<|im_end|><|im_start|>assistant<|im_sep|>second<|im"
       "_end|><|im_start|>assistant<|im_sep|>",
       "<|im_start|>user<|im_sep|>a<|im_end|><|im_start|>assistant<|im_sep|><think>\n"
       "\n\nr\n\n</think>\nans</think>\nz<|im_end|><|im_start|>assistant<|im_sep|>second<|im"
       "_end|>"},
     }},
    {"zephyr", "zephyr",
     "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
     "{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'sys"
     "tem' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
     "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n"
     "'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generat"
     "ion_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
     {
      {"<|system|>\n Be brief. </s>\n<|user|>\n Hello </s>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n</s>\n<|user|>\nBye\302\240</s>\n"
       "<|assistant|>\n",
       "<|system|>\n Be brief. </s>\n<|user|>\n Hello </s>\n<|assistant|>\n"
       "<think>\nhm\n</think>\n\n Hi \n</s>\n<|user|>\nBye\302\240</s>\n"},
      {"<|user|>\nWhat is tar?</s>\n<|assistant|>\n",
       "<|user|>\nWhat is tar?</s>\n"},
      {"<|system|>\ns</s>\n<|user|>\n   </s>\n<|assistant|>\n",
       "<|system|>\ns</s>\n<|user|>\n   </s>\n"},
      {"<|user|>\na</s>\n<|user|>\nb</s>\n<|assistant|>\n",
       "<|user|>\na</s>\n<|user|>\nb</s>\n"},
      {"<|system|>\ns</s>\n<|system|>\nt</s>\n<|user|>\nu</s>\n<|assistant|>\n"
       "</s>\n<|user|>\n\n\nv\n</s>\n<|assistant|>\n",
       "<|system|>\ns</s>\n<|system|>\nt</s>\n<|user|>\nu</s>\n<|assistant|>\n"
       "</s>\n<|user|>\n\n\nv\n</s>\n"},
      {"<|user|>\na</s>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\nans</think>\n"
       "z</s>\n<|assistant|>\nsecond</s>\n<|assistant|>\n",
       "<|user|>\na</s>\n<|assistant|>\n<think>\n\n\nr\n\n</think>\nans</think>\n"
       "z</s>\n<|assistant|>\nsecond</s>\n"},
     }},
    {"deepseek", "deepseek",
     "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
     "{% endif %}{{ bos_token }}{% for message in messages %}{% if message['role'] == 'use"
     "r' %}{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assista"
     "nt' %}{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] =="
     " 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_genera"
     "tion_prompt %}{{ 'Assistant:' }}{% endif %}",
     {
      {"<s> Be brief. \n\nUser:  Hello \n\nAssistant: <think>\nhm\n</think>\n"
       "\n Hi \n</s>User: Bye\302\240\n\nAssistant:",
       "<s> Be brief. \n\nUser:  Hello \n\nAssistant: <think>\nhm\n</think>\n"
       "\n Hi \n</s>User: Bye\302\240\n\n"},
      {"<s>User: What is tar?\n\nAssistant:",
       "<s>User: What is tar?\n\n"},
      {"<s>s\n\nUser:    \n\nAssistant:",
       "<s>s\n\nUser:    \n\n"},
      {"<s>User: a\n\nUser: b\n\nAssistant:",
       "<s>User: a\n\nUser: b\n\n"},
      {"<s>s\n\nt\n\nUser: u\n\nAssistant: </s>User: \n\nv\n\n\nAssistant:",
       "<s>s\n\nt\n\nUser: u\n\nAssistant: </s>User: \n\nv\n\n\n"},
      {"<s>User: a\n\nAssistant: <think>\n\n\nr\n\n</think>\nans</think>\n"
       "z</s>Assistant: second</s>Assistant:",
       "<s>User: a\n\nAssistant: <think>\n\n\nr\n\n</think>\nans</think>\n"
       "z</s>Assistant: second</s>"},
     }},
    {"deepseek-coder", "deepseek-coder",
     "{% if not add_generation_prompt is defined %}\n{% set add_generation_prompt = false "
     "%}\n{% endif %}\n{%- set ns = namespace(found=false) -%}\n{%- for message in message"
     "s -%}\n    {%- if message['role'] == 'system' -%}\n        {%- set ns.found = true -"
     "%}\n    {%- endif -%}\n{%- endfor -%}\n{{bos_token}}{%- if not ns.found -%}\n"
     "{{'You are an AI programming assistant, utilizing the Deepseek Coder model, develope"
     "d by Deepseek Company, and you only answer questions related to computer science. Fo"
     "r politically sensitive questions, security and privacy issues, and other non-comput"
     "er science questions, you will refuse to answer\\n'}}\n{%- endif %}\n"
     "{%- for message in messages %}\n    {%- if message['role'] == 'system' %}\n"
     "{{ message['content'] }}\n    {%- else %}\n        {%- if message['role'] == 'user' "
     "%}\n{{'### Instruction:\\n' + message['content'] + '\\n'}}\n        {%- else %}\n"
     "{{'### Response:\\n' + message['content'] + '\\n<|EOT|>\\n'}}\n"
     "        {%- endif %}\n    {%- endif %}\n{%- endfor %}\n{% if add_generation_prompt %"
     "}\n{{'### Response:'}}\n{% endif %}",
     {
      {"<s> Be brief. ### Instruction:\n Hello \n### Response:\n<think>\n"
       "hm\n</think>\n\n Hi \n\n<|EOT|>\n### Instruction:\nBye\302\240\n"
       "### Response:\n",
       "<s> Be brief. ### Instruction:\n Hello \n### Response:\n<think>\n"
       "hm\n</think>\n\n Hi \n\n<|EOT|>\n### Instruction:\nBye\302\240\n"},
      {"<s>You are an AI programming assistant, utilizing the Deepseek Coder model, develope"
       "d by Deepseek Company, and you only answer questions related to computer science. Fo"
       "r politically sensitive questions, security and privacy issues, and other non-comput"
       "er science questions, you will refuse to answer\n### Instruction:\n"
       "What is tar?\n### Response:\n",
       "<s>You are an AI programming assistant, utilizing the Deepseek Coder model, develope"
       "d by Deepseek Company, and you only answer questions related to computer science. Fo"
       "r politically sensitive questions, security and privacy issues, and other non-comput"
       "er science questions, you will refuse to answer\n### Instruction:\n"
       "What is tar?\n"},
      {"<s>s### Instruction:\n   \n### Response:\n",
       "<s>s### Instruction:\n   \n"},
      {"<s>You are an AI programming assistant, utilizing the Deepseek Coder model, develope"
       "d by Deepseek Company, and you only answer questions related to computer science. Fo"
       "r politically sensitive questions, security and privacy issues, and other non-comput"
       "er science questions, you will refuse to answer\n### Instruction:\n"
       "a\n### Instruction:\nb\n### Response:\n",
       "<s>You are an AI programming assistant, utilizing the Deepseek Coder model, develope"
       "d by Deepseek Company, and you only answer questions related to computer science. Fo"
       "r politically sensitive questions, security and privacy issues, and other non-comput"
       "er science questions, you will refuse to answer\n### Instruction:\n"
       "a\n### Instruction:\nb\n"},
      {"<s>st### Instruction:\nu\n### Response:\n\n<|EOT|>\n### Instruction:\n"
       "\n\nv\n\n### Response:\n",
       "<s>st### Instruction:\nu\n### Response:\n\n<|EOT|>\n### Instruction:\n"
       "\n\nv\n\n"},
      {"<s>You are an AI programming assistant, utilizing the Deepseek Coder model, develope"
       "d by Deepseek Company, and you only answer questions related to computer science. Fo"
       "r politically sensitive questions, security and privacy issues, and other non-comput"
       "er science questions, you will refuse to answer\n### Instruction:\n"
       "a\n### Response:\n<think>\n\n\nr\n\n</think>\nans</think>\nz\n"
       "<|EOT|>\n### Response:\nsecond\n<|EOT|>\n### Response:\n",
       "<s>You are an AI programming assistant, utilizing the Deepseek Coder model, develope"
       "d by Deepseek Company, and you only answer questions related to computer science. Fo"
       "r politically sensitive questions, security and privacy issues, and other non-comput"
       "er science questions, you will refuse to answer\n### Instruction:\n"
       "a\n### Response:\n<think>\n\n\nr\n\n</think>\nans</think>\nz\n"
       "<|EOT|>\n### Response:\nsecond\n<|EOT|>\n"},
     }},
    {"deepseek3 (V3, without its tools)", "deepseek3",
     "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
     "{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true"
     ", system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message"
     "['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_p"
     "rompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.sy"
     "stem_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- end"
     "if %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %"
     "}{%- if message['role'] == 'user' %}{{'<\357\275\234User\357\275\234>' + message['co"
     "ntent']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is"
     " not none %}{% set content = message['content'] %}{{'<\357\275\234Assistant\357\275\234"
     ">' + content + '<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>'}}{%"
     "- endif %}{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<\357\275"
     "\234Assistant\357\275\234>'}}{% endif %}",
     {
      {"<s> Be brief. <\357\275\234User\357\275\234> Hello <\357\275\234Assistant\357\275\234"
       "><think>\nhm\n</think>\n\n Hi \n<\357\275\234end\342\226\201of\342\226\201sentence\357"
       "\275\234><\357\275\234User\357\275\234>Bye\302\240<\357\275\234Assistant\357\275\234"
       ">",
       "<s> Be brief. <\357\275\234User\357\275\234> Hello <\357\275\234Assistant\357\275\234"
       "><think>\nhm\n</think>\n\n Hi \n<\357\275\234end\342\226\201of\342\226\201sentence\357"
       "\275\234><\357\275\234User\357\275\234>Bye\302\240"},
      {"<s><\357\275\234User\357\275\234>What is tar?<\357\275\234Assistant\357\275\234>",
       "<s><\357\275\234User\357\275\234>What is tar?"},
      {"<s>s<\357\275\234User\357\275\234>   <\357\275\234Assistant\357\275\234>",
       "<s>s<\357\275\234User\357\275\234>   "},
      {"<s><\357\275\234User\357\275\234>a<\357\275\234User\357\275\234>b<\357\275\234Assist"
       "ant\357\275\234>",
       "<s><\357\275\234User\357\275\234>a<\357\275\234User\357\275\234>b"},
      {"<s>s\n\nt<\357\275\234User\357\275\234>u<\357\275\234Assistant\357\275\234><\357\275"
       "\234end\342\226\201of\342\226\201sentence\357\275\234><\357\275\234User\357\275\234>"
       "\n\nv\n<\357\275\234Assistant\357\275\234>",
       "<s>s\n\nt<\357\275\234User\357\275\234>u<\357\275\234Assistant\357\275\234><\357\275"
       "\234end\342\226\201of\342\226\201sentence\357\275\234><\357\275\234User\357\275\234>"
       "\n\nv\n"},
      {"<s><\357\275\234User\357\275\234>a<\357\275\234Assistant\357\275\234><think>\n"
       "\n\nr\n\n</think>\nans</think>\nz<\357\275\234end\342\226\201of\342\226\201sentence\357"
       "\275\234><\357\275\234Assistant\357\275\234>second<\357\275\234end\342\226\201of\342"
       "\226\201sentence\357\275\234><\357\275\234Assistant\357\275\234>",
       "<s><\357\275\234User\357\275\234>a<\357\275\234Assistant\357\275\234><think>\n"
       "\n\nr\n\n</think>\nans</think>\nz<\357\275\234end\342\226\201of\342\226\201sentence\357"
       "\275\234><\357\275\234Assistant\357\275\234>second<\357\275\234end\342\226\201of\342"
       "\226\201sentence\357\275\234>"},
     }},
    {"deepseek3 (R1, without its tools)", "deepseek3",
     "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
     "{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true"
     ", system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'syste"
     "m' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_t"
     "oken}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'u"
     "ser' %}{{'<\357\275\234User\357\275\234>' + message['content']}}{%- endif %}{%- if m"
     "essage['role'] == 'assistant' and message['content'] is not none %}{% set content = "
     "message['content'] %}{% if '</think>' in content %}{% set content = content.split('<"
     "/think>')[-1] %}{% endif %}{{'<\357\275\234Assistant\357\275\234>' + content + '<\357"
     "\275\234end\342\226\201of\342\226\201sentence\357\275\234>'}}{%- endif %}{%- endfor "
     "-%}{% if add_generation_prompt and not ns.is_tool %}{{'<\357\275\234Assistant\357\275"
     "\234><think>\\n'}}{% endif %}",
     {
      {"<s> Be brief. <\357\275\234User\357\275\234> Hello <\357\275\234Assistant\357\275\234"
       ">\n\n Hi \n<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234><\357\275\234"
       "User\357\275\234>Bye\302\240<\357\275\234Assistant\357\275\234><think>\n",
       "<s> Be brief. <\357\275\234User\357\275\234> Hello <\357\275\234Assistant\357\275\234"
       ">\n\n Hi \n<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234><\357\275\234"
       "User\357\275\234>Bye\302\240"},
      {"<s><\357\275\234User\357\275\234>What is tar?<\357\275\234Assistant\357\275\234><thi"
       "nk>\n",
       "<s><\357\275\234User\357\275\234>What is tar?"},
      {"<s>s<\357\275\234User\357\275\234>   <\357\275\234Assistant\357\275\234><think>\n",
       "<s>s<\357\275\234User\357\275\234>   "},
      {"<s><\357\275\234User\357\275\234>a<\357\275\234User\357\275\234>b<\357\275\234Assist"
       "ant\357\275\234><think>\n",
       "<s><\357\275\234User\357\275\234>a<\357\275\234User\357\275\234>b"},
      {"<s>t<\357\275\234User\357\275\234>u<\357\275\234Assistant\357\275\234><\357\275\234e"
       "nd\342\226\201of\342\226\201sentence\357\275\234><\357\275\234User\357\275\234>\n"
       "\nv\n<\357\275\234Assistant\357\275\234><think>\n",
       "<s>t<\357\275\234User\357\275\234>u<\357\275\234Assistant\357\275\234><\357\275\234e"
       "nd\342\226\201of\342\226\201sentence\357\275\234><\357\275\234User\357\275\234>\n"
       "\nv\n"},
      {"<s><\357\275\234User\357\275\234>a<\357\275\234Assistant\357\275\234>\n"
       "z<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234><\357\275\234Assista"
       "nt\357\275\234>second<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>"
       "<\357\275\234Assistant\357\275\234><think>\n",
       "<s><\357\275\234User\357\275\234>a<\357\275\234Assistant\357\275\234>\n"
       "z<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234><\357\275\234Assista"
       "nt\357\275\234>second<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>"},
     }},
    {"command-r", "command-r",
     "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messag"
     "es[1:] %}{% set system_message = messages[0]['content'] %}{% elif false == true %}{%"
     " set loop_messages = messages %}{% set system_message = 'You are Command-R, a brilli"
     "ant, sophisticated, AI-assistant trained to assist human users by providing thorough"
     " responses. You are trained by Cohere.' %}{% else %}{% set loop_messages = messages "
     "%}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|S"
     "TART_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{"
     "% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (lo"
     "op.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/ass"
     "istant/user/assistant/...') }}{% endif %}{% set content = message['content'] %}{% if"
     " message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.st"
     "rip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|STA"
     "RT_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
     "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CH"
     "ATBOT_TOKEN|>' }}{% endif %}",
     {
      {"<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|> Be brief. <|END_OF_TURN_TOKEN|><|START_OF"
       "_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBO"
       "T_TOKEN|><think>\nhm\n</think>\n\n Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|U"
       "SER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
       "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|> Be brief. <|END_OF_TURN_TOKEN|><|START_OF"
       "_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBO"
       "T_TOKEN|><think>\nhm\n</think>\n\n Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|U"
       "SER_TOKEN|>Bye<|END_OF_TURN_TOKEN|>"},
      {"<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|>What is tar?<|END_OF_TURN_TOKEN|><|START_OF_"
       "TURN_TOKEN|><|CHATBOT_TOKEN|>",
       "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|>What is tar?<|END_OF_TURN_TOKEN|>"},
      {"<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>s<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKE"
       "N|><|USER_TOKEN|><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
       "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>s<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKE"
       "N|><|USER_TOKEN|><|END_OF_TURN_TOKEN|>"},
      {NULL,
       NULL},
      {NULL,
       NULL},
      {NULL,
       NULL},
     }},
};
/* clang-format on */

#define N_CASE_TEMPLATES (sizeof case_templates / sizeof case_templates[0])

#endif
