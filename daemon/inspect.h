/* inspect.h: inferd --inspect FILE: what a model file holds; nothing is served. */
#ifndef INFERD_INSPECT_H
#define INFERD_INSPECT_H

#include "config.h"

/* Prints the file's description with what the backend would take, when it can tell. */
int inspect_file(const struct config *config, struct report *report);

/* Standard input to a JSON array of token ids, no BOS added; also for vocabulary-only files. As
 * llama.cpp's tokenizing tool does it, special tokens that the text names are special, and
 * backslash sequences are replaced unless config->no_escape. */
int inspect_tokenize(const struct config *config, struct report *report);

#endif
