# Makefile: builds inferd, its backends, libinferclient, inferctl and the tests.
#
#   make            everything, into build/
#   make try        ask the embedded model a question (installs what is missing first)
#   make check      all tests, also under sanitizers, with both compilers (likewise)
#   make check-layers, check-format, check-unit     parts of it
#   make check-gpu  the tests of the CUDA backend, on this machine's GPU; make check-gpu-sanitize:
#                   under compute-sanitizer
#   make sim SEEDS=N                  N simulated days of the daemon (tests/sim)
#   make bench-gpu  its figures, with the clocks and power seen; make gpu: what that needs
#   make bench, make bench-serve      the figures of README, beside llama.cpp
#   make bench-load                   how fast weights load, beside fio and llama.cpp
#   make bench-service                what the service costs when idle, how soon it answers
#   make install      into $(DESTDIR)$(prefix), /usr/local by default; make uninstall takes it away
#   make bundle       build/bundle: one folder that runs wherever it lies
#   make clean
#
# SAN=1 builds with AddressSanitizer and UBSan into build/san; CC=clang into build/clang.
# CUDA=0 skips nvcc even where it is found; CUDA_CODE says for which GPUs it makes code.
# EXTRA_CFLAGS="-O0 ..." has the last word on how C and C++ are compiled.
# V=1 shows the commands.

VERSION := 0.1.0
SAN ?= 0
Q := $(if $(V),,@)
CUDA ?= 1
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
CXX := $(if $(filter default,$(origin CXX)),$(if $(findstring clang,$(CC)),clang++,g++),$(CXX))

variant := $(if $(filter 1,$(SAN)),/san,)$(if $(findstring clang,$(CC)),/clang,)
B := build$(variant)
O := $(B)/obj

prefix ?= /usr/local
bindir ?= $(prefix)/bin
libdir ?= $(prefix)/lib
includedir ?= $(prefix)/include
datadir ?= $(prefix)/share
mandir ?= $(datadir)/man
unitdir ?= $(prefix)/lib/systemd/system
userunitdir ?= $(prefix)/lib/systemd/user
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d

warnings := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla \
            -Wno-unused-parameter -Wpointer-arith -Wundef
comma := ,
san := $(if $(filter 1,$(SAN)),-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined \
         -fno-omit-frame-pointer -O1,)
common := -g -O2 -fPIC -fvisibility=hidden -fno-math-errno -D_GNU_SOURCE -DINFERD_LIBDIR='"$(libdir)/inferd"' -DINFERD_VERSION='"$(VERSION)"' \
          -Iinclude $(warnings) $(san) -MMD -MP $(EXTRA_CFLAGS)
daemon_cflags := -std=gnu11 -Idaemon $(common)
client_cflags := -std=c99 $(common)
kernel_cflags := -std=gnu11 -Ikernels $(common) $(if $(san),-O1,-O3) $(EXTRA_CFLAGS)
ldflags := $(san) -Wl,--as-needed -Wl,-z,relro,-z,now
# Where a bundle has the libraries of its programs. RPATH, not RUNPATH: it holds for what they need.
own_libraries := -Wl,--disable-new-dtags -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib/inferd:$$ORIGIN/../lib'

# ---- the daemon's rooms: one archive each, so that the layers show in the link ----------------

rooms := base io proto model kv sched engine
room_objects = $(patsubst %.c,$(O)/%.o,$(wildcard daemon/$(1)/*.c))
room_archive = $(B)/lib/$(1).a
daemon_objects := $(patsubst %.c,$(O)/%.o,$(wildcard daemon/*.c))
daemon_libs := -luring -lhwloc -lseccomp -lpcre2-8 -lsystemd -lpthread -lm -ldl
room_archives := $(foreach r,engine sched kv model proto io base,$(call room_archive,$(r)))

backends := $(patsubst kernels/%/,%,$(wildcard kernels/*/))
backends := $(filter ref cpu null,$(backends))
backend_objects = $(patsubst %.c,$(O)/%.o,$(wildcard kernels/$(1)/*.c))
backend_libs := $(foreach b,$(backends),$(B)/inferd-backend-$(b).so)

client_objects := $(patsubst %.c,$(O)/%.o,$(wildcard client/lib/*.c))
inferctl_objects := $(patsubst %.c,$(O)/%.o,$(wildcard client/inferctl/*.c))
examples := $(patsubst client/examples/%.c,$(B)/examples/%,$(wildcard client/examples/*.c))

# The CUDA backend is built where nvcc is found, with gcc and without sanitizers.
cuda_sources := $(sort $(wildcard kernels/cuda/*.c kernels/cuda/*.cu))
cuda_homes := $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v nvcc)) /usr/local/cuda/bin/nvcc /usr/bin/nvcc)
cuda_home := $(if $(filter-out 0,$(CUDA)),$(if $(variant)$(if $(cuda_sources),,none),,$(patsubst \
    %/include/cuda_runtime_api.h,%,$(firstword $(foreach h,$(cuda_homes),$(if $(wildcard $(h)/bin/nvcc),$(wildcard $(h)/include/cuda_runtime_api.h)))))))
cuda_lib := $(if $(cuda_home),$(B)/inferd-backend-cuda.so)

.PHONY: all
all: $(B)/inferd $(B)/inferctl $(B)/libinferclient.so $(B)/libinferclient.pc $(backend_libs) $(cuda_lib) $(examples)

$(O)/daemon/%.o: daemon/%.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(daemon_cflags) -c $< -o $@

$(O)/client/%.o: client/%.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(client_cflags) -c $< -o $@

# The file's name says what it may use; the dispatcher picks by cpuid at run time.
$(O)/kernels/%_avx2.o: isa := -mavx2 -mfma -mf16c -mbmi2
$(O)/kernels/%_avx512.o: isa := -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512bf16 -mavx512vbmi -mprefer-vector-width=512
# The reference is exact on every machine: no multiply and add becomes one rounding.
$(O)/kernels/ref/%.o: isa := -ffp-contract=off
$(O)/kernels/%.o: kernels/%.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(kernel_cflags) $(isa) -c $< -o $@

define room_rule
$(call room_archive,$(1)): $(call room_objects,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	@echo "  AR  $$@"
	$(Q)ar rcs $$@ $$^
endef
$(foreach r,$(rooms),$(eval $(call room_rule,$(r))))

$(B)/inferd: $(daemon_objects) $(room_archives)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) $(own_libraries) -o $@ $(daemon_objects) -Wl,--start-group $(room_archives) -Wl,--end-group $(daemon_libs)

# What every CPU-side backend shares (type decoding, the sampler) is kernels/ref without its entry.
ref_shared := $(filter-out %/ref.o,$(call backend_objects,ref))
define backend_rule
$(B)/inferd-backend-$(1).so: $(call backend_objects,$(1)) $(ref_shared)
	@mkdir -p $$(@D)
	@echo "  LD  $$@"
	$(Q)$(CC) $(ldflags) -shared -Wl,--version-script=kernels/backend.map -o $$@ $$(sort $$^) -lpthread -lm
	@chmod go-w $$@ $$(@D) # the daemon loads nothing that others may write
endef
$(foreach b,$(backends),$(eval $(call backend_rule,$(b))))

# ---- CUDA --------------------------------------------------------------------------------------
# Machine code for the H200's family, and PTX, which the driver compiles for others: 7.5, the oldest
# that is used, 8.0, from where on there are larger products and asynchronous copies, and newer ones
# than 9.0, whose kernels may start early and so must know how to wait.

CUDA_CODE ?= sm_90a compute_75 compute_80 compute_90
cuda_arch = $(patsubst compute_%,%,$(patsubst sm_%,%,$(1)))
cuda_codes := $(foreach c,$(CUDA_CODE),-gencode arch=compute_$(call cuda_arch,$(c))$(comma)code=$(c))
cuda_include := $(if $(filter-out /usr,$(cuda_home)),-isystem $(cuda_home)/include)
nvcc_flags := -std=c++17 -O3 -g -lineinfo -Xfatbin -compress-all $(cuda_codes) -ccbin $(CXX) -Iinclude -Ikernels -MMD -MP \
    -Werror all-warnings \
    -Xcompiler -fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-Wall,-Wextra,-Werror,-Wno-unused-parameter,-Wno-missing-field-initializers
cuda_objects := $(addsuffix .o,$(addprefix $(O)/cuda/,$(cuda_sources)))

$(O)/cuda/%.c.o: %.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(kernel_cflags) $(cuda_include) $(cuda_names) -c $< -o $@
# Which of them a device runs.
$(O)/cuda/kernels/cuda/code.c.o: cuda_names := -DCUDA_CODE='"$(CUDA_CODE)"'
$(O)/cuda/kernels/cuda/code.c.o: $(O)/cuda/code
$(O)/cuda/%.cu.o: %.cu $(O)/cuda/code
	@mkdir -p $(@D)
	@echo "  NVCC $@"
	$(Q)$(cuda_home)/bin/nvcc $(nvcc_flags) -c $< -o $@

# Changes when CUDA_CODE does.
$(O)/cuda/code: FORCE
	@mkdir -p $(@D)
	@echo '$(CUDA_CODE)' | cmp -s - $@ || echo '$(CUDA_CODE)' > $@
.PHONY: FORCE
FORCE:

# The runtime library is linked in; it finds the driver when it is first used, or says so.
cuda_runtime = -L$(firstword $(patsubst %/libcudart_static.a,%,$(wildcard $(addsuffix /libcudart_static.a, \
    $(cuda_home)/lib64 $(cuda_home)/targets/*/lib $(cuda_home)/lib/*-linux-gnu $(cuda_home)/lib)))) \
    -lcudart_static -ldl -lrt -lpthread -lm
$(B)/inferd-backend-cuda.so: $(cuda_objects) $(ref_shared)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -shared -Wl,--version-script=kernels/backend.map -o $@ $^ $(cuda_runtime)
	@chmod go-w $@ $(@D)

# The same sources for tests, where there is neither nvcc nor GPU: kernels on the processor, thread by
# thread, over the stand-ins for CUDA's headers and runtime in tests/support/cuda.
emulated_include := -Itests/support -Itests/support/cuda/include
# A second stack for each emulated thread, which finds uses of locals after their return, would be
# gigabytes.
emulated_include += $(if $(san),$(if $(findstring clang,$(CC)),-fsanitize-address-use-after-return=never,--param asan-use-after-return=0))
emulated_flags := -std=gnu++17 -fno-exceptions -fno-rtti -fno-threadsafe-statics -Wno-unknown-pragmas -Wno-missing-field-initializers -Wno-pass-failed
# Of code that sanitizers have made several times as large lines are enough: where variables are in
# it takes a compiler a third of its time.
emulated_flags += $(if $(san),-g1) $(EXTRA_CFLAGS)
emulated_objects := $(addsuffix .o,$(addprefix $(O)/emulated/,$(cuda_sources) $(wildcard tests/support/cuda/*.c)))
cuda_emulated_lib := $(if $(cuda_sources),$(B)/inferd-backend-cuda-emulated.so)

$(O)/emulated/%.c.o: %.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(kernel_cflags) $(emulated_include) -c $< -o $@
$(O)/emulated/%.cu.o: %.cu
	@mkdir -p $(@D)
	@echo "  CXX $@"
	$(Q)$(CXX) -x c++ $(filter-out -std=% -Wstrict-prototypes -Wmissing-prototypes -Wshadow,$(kernel_cflags)) $(emulated_flags) $(emulated_include) -c $< -o $@
$(B)/inferd-backend-cuda-emulated.so: $(emulated_objects) $(ref_shared)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -shared -Wl,--version-script=kernels/backend.map -o $@ $^ -lpthread -lm
	@chmod go-w $@ $(@D)

$(B)/libinferclient.so.0: $(client_objects) client/libinferclient.map
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -shared -Wl,-soname,libinferclient.so.0 \
	    -Wl,--version-script=client/libinferclient.map -o $@ $(client_objects)
$(B)/libinferclient.so: $(B)/libinferclient.so.0
	@echo "  LN  $@"
	$(Q)ln -sf libinferclient.so.0 $@
$(B)/libinferclient.pc: client/libinferclient.pc.in Makefile
	@mkdir -p $(@D)
	@echo "  GEN $@"
	$(Q)sed -e 's|@prefix@|$(prefix)|;s|@libdir@|$(libdir)|;s|@includedir@|$(includedir)|;s|@version@|$(VERSION)|' $< > $@

$(B)/inferctl: $(inferctl_objects) $(B)/libinferclient.so
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) $(own_libraries) -o $@ $(inferctl_objects) -L$(B) -linferclient -ledit -ljansson -lm
$(B)/examples/%: client/examples/%.c $(B)/libinferclient.so
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(client_cflags) $(ldflags) -Wl,-rpath,'$$ORIGIN/..' -o $@ $< -L$(B) -linferclient

# ---- installation ------------------------------------------------------------------------------

completions := $(addprefix $(B)/completions/,inferd.bash inferctl.bash _inferd _inferctl)
$(B)/completions/inferd.bash $(B)/completions/_inferd: $(B)/inferd
	@mkdir -p $(@D)
	@echo "  GEN $@"
	$(Q)$(B)/inferd --completion $(if $(findstring .bash,$@),bash,zsh) > $@.new && mv $@.new $@
$(B)/completions/inferctl.bash $(B)/completions/_inferctl: $(B)/inferctl tools/completion.sh
	@mkdir -p $(@D)
	@echo "  GEN $@"
	$(Q)tools/completion.sh $(if $(findstring .bash,$@),bash,zsh) $(B)/inferctl > $@.new && mv $@.new $@

place = B='$(B)' VERSION='$(VERSION)' DESTDIR='$(DESTDIR)' prefix='$(1)' bindir='$(2)' libdir='$(3)' \
    includedir='$(4)' datadir='$(5)' mandir='$(6)' unitdir='$(unitdir)' userunitdir='$(userunitdir)' \
    sysusersdir='$(sysusersdir)' tmpfilesdir='$(tmpfilesdir)' tools/install.sh
configured_place = $(call place,$(prefix),$(bindir),$(libdir),$(includedir),$(datadir),$(mandir))

.PHONY: install uninstall bundle
install: all $(completions)
	$(Q)$(configured_place) install
uninstall:
	$(Q)$(configured_place) uninstall
bundle: all $(completions)
	$(Q)$(call place,,/bin,/lib,/include,/share,/share/man) bundle

# ---- tests -------------------------------------------------------------------------------------
# tests/unit/ROOM/test_*.c links ROOM and what it may include; tests/kernel/test_*.c links the
# reference kernels and loads backends; tests/{golden,hostile,integration}/test_*.{c,sh} run the
# built programs, whose folder is in INFERD_BUILD; tests/sim is one program, the simulator.

room_deps_io := base
room_deps_proto := base
room_deps_model := base
room_deps_kv := base
room_deps_sched := base
room_deps_engine := model kv base
room_deps_client :=

unit_tests := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/*/test_*.c))
kernel_tests := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/kernel/test_*.c))
cuda_tests := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/kernel/test_cuda_*.c))
gpu_tests := $(patsubst $(B)/tests/%,$(B)/tests/gpu/%,$(cuda_tests))
system_tests := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/golden/test_*.c tests/hostile/test_*.c tests/integration/test_*.c))
script_tests := $(wildcard tests/golden/test_*.sh tests/hostile/test_*.sh tests/integration/test_*.sh tests/sim/test_*.sh)
test_cflags := -std=gnu11 -Itests -Idaemon -Ikernels -Wno-missing-prototypes
# test_arch and test_window go below the daemon: through model/, and engine/, to a backend.
$(B)/tests/golden/test_arch: $(call room_archive,model) $(call room_archive,base) | $(cuda_emulated_lib)
$(B)/tests/gpu/golden/test_arch: $(B)/tests/golden/test_arch | $(cuda_lib)
	@mkdir -p $(@D)
	$(Q)cp $< $@
$(B)/tests/golden/test_window: $(foreach r,engine kv model base,$(call room_archive,$(r)))
$(B)/tests/golden/test_arch $(B)/tests/golden/test_window: $(B)/tests/golden/test_%: $(O)/tests/golden/test_%.o | $(backend_libs)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -lcmocka $(daemon_libs)

support_objects := $(patsubst %.c,$(O)/%.o,$(wildcard tests/support/*.c))

$(O)/tests/%.o: tests/%.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(common) $(test_cflags) -c $< -o $@

define unit_rule
$(B)/tests/unit/$(1)/%: $(O)/tests/unit/$(1)/%.o $(foreach r,$(1) $(room_deps_$(1)),$(call room_archive,$(r)))
	@mkdir -p $$(@D)
	@echo "  LD  $$@"
	$(Q)$$(CC) $$(ldflags) -o $$@ $$< -Wl,--start-group $$(filter %.a,$$^) -Wl,--end-group -lcmocka $(daemon_libs)
endef
$(foreach r,$(rooms),$(eval $(call unit_rule,$(r))))
$(B)/tests/unit/client/%: $(O)/tests/unit/client/%.o $(client_objects) $(call room_archive,proto) $(call room_archive,base)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $^ -lcmocka -lpthread
# The daemon's own files stand alone: each is tested with base and what it names here.
$(B)/tests/unit/daemon/test_backend_load: $(O)/daemon/memory.o | $(backend_libs)
$(B)/tests/unit/daemon/test_devices: $(O)/daemon/lost.o
$(B)/tests/unit/daemon/test_metrics: $(O)/daemon/metrics_text.o $(O)/tests/support/openmetrics.o
config_objects := $(patsubst %,$(O)/daemon/%.o,config config_options config_file config_show policy)
$(B)/tests/unit/daemon/test_topology: $(O)/daemon/topology_draw.o
$(B)/tests/unit/daemon/test_sandbox: $(call room_archive,io)
$(B)/tests/unit/daemon/test_config $(B)/tests/unit/daemon/test_config_file: $(config_objects)
$(B)/tests/unit/daemon/test_selftest: $(O)/daemon/backend_load.o $(O)/daemon/memory.o | $(backend_libs)
$(B)/tests/unit/daemon/test_notify: $(call room_archive,io)
$(B)/tests/unit/daemon/test_%: $(O)/tests/unit/daemon/test_%.o $(O)/daemon/%.o $(call room_archive,base)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -lcmocka $(daemon_libs)

$(B)/tests/kernel/%: $(O)/tests/kernel/%.o $(call backend_objects,ref) $(backend_libs)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $< $(call backend_objects,ref) -lcmocka -lpthread -lm -ldl
# Of the CUDA backend: the launch functions of kernels/cuda/cuda.h, emulated or, in tests/gpu, real.
# From archives, so that a program has the kernels alone that it tests.
$(cuda_tests): $(B)/tests/kernel/%: $(O)/emulated/tests/kernel/%.c.o $(B)/lib/cuda-emulated.a $(backend_libs)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $(filter %.o %.a,$^) -lcmocka -lpthread -lm -ldl
$(gpu_tests): $(B)/tests/gpu/kernel/%: $(O)/cuda/tests/kernel/%.c.o $(B)/lib/cuda.a $(backend_libs)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $(filter %.o %.a,$^) -lcmocka $(cuda_runtime)
$(B)/lib/cuda.a: $(cuda_objects) $(ref_shared)
$(B)/lib/cuda-emulated.a: $(emulated_objects) $(ref_shared)
$(B)/lib/cuda.a $(B)/lib/cuda-emulated.a:
	@mkdir -p $(@D)
	@rm -f $@
	@echo "  AR  $@"
	$(Q)ar rcs $@ $^
# And as a whole: the shared object, which the test loads.
$(addprefix $(B)/tests/kernel/test_,ahead cuda mixed pages parts upload) $(B)/tests/golden/test_greedy $(B)/tests/integration/test_lost: | $(cuda_emulated_lib)
whole_gpu_tests := $(addprefix $(B)/tests/gpu/kernel/test_,ahead cuda mixed pages parts upload)
$(whole_gpu_tests): $(B)/tests/gpu/kernel/%: $(O)/tests/kernel/%.o $(call backend_objects,ref) | $(backend_libs) $(cuda_lib)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $(filter %.o,$^) -lcmocka -lpthread -lm -ldl
$(O)/emulated/tests/%.c.o: tests/%.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(common) $(test_cflags) $(emulated_include) -c $< -o $@
$(O)/cuda/tests/%.c.o: tests/%.c
	@mkdir -p $(@D)
	@echo "  CC  $@"
	$(Q)$(CC) $(common) $(test_cflags) $(cuda_include) -c $< -o $@
# Goes below the daemon: plans with random weights, straight to the backend.
$(B)/tests/bench/bench_kernels: $(O)/tests/bench/bench_kernels.o $(O)/kernels/ref/quant.o $(O)/kernels/ref/quant_tables.o
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $^ -ldl -lm

$(B)/tests/bench/bench_cuda: $(O)/tests/bench/bench_cuda.o $(O)/kernels/ref/quant.o $(O)/kernels/ref/quant_tables.o $(if $(cuda_home),$(O)/cuda/tests/bench/bench_probe.cu.o)
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $^ $(if $(cuda_home),$(cuda_runtime),-ldl -lm)

# A model file with the same weights.
$(B)/tests/bench/bench_model: $(O)/tests/bench/bench_model.o $(O)/tests/support/gguf_write.o $(O)/kernels/ref/quant.o $(O)/kernels/ref/quant_tables.o
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -o $@ $^ -lm

# The weight streamer alone, and the daemon from outside.
$(B)/tests/bench/bench_load: $(O)/tests/bench/bench_load.o $(support_objects) $(call room_archive,io) $(call room_archive,base) $(B)/libinferclient.so
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group -L$(B) -linferclient -lcmocka -luring -lpthread -lm

# The simulator is a hub of its own: the hub's files and its rooms (but io), the null backend, and
# the linker between the hub and what it calls.
sim_objects := $(patsubst %.c,$(O)/%.o,$(wildcard tests/sim/*.c)) $(O)/tests/support/gguf_write.o
sim_daemon := $(patsubst %.c,$(O)/%.o,$(wildcard daemon/dispatch*.c daemon/job.c daemon/conversations.c daemon/swap.c daemon/metrics*.c))
sim_wraps := malloc calloc realloc aligned_alloc free sched_add sched_remove sched_plan sched_goes_on session_put_done
$(B)/tests/sim/sim: $(sim_objects) $(sim_daemon) $(O)/kernels/null/null.o $(O)/kernels/ref/options.o $(filter-out %/io.a,$(room_archives))
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) $(addprefix -Wl$(comma)--wrap=,$(sim_wraps)) -o $@ $(filter %.o,$^) \
	    -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(daemon_libs)

$(B)/tests/%: $(O)/tests/%.o $(support_objects) $(B)/libinferclient.so
	@mkdir -p $(@D)
	@echo "  LD  $@"
	$(Q)$(CC) $(ldflags) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $< $(support_objects) -L$(B) -linferclient -lcmocka -ljansson -lpthread -lm

.SECONDARY:
.PHONY: tests sim check check-unit check-gpu check-gpu-sanitize check-layers check-format check-long deps deps-check try clean format bench bench-serve bench-load bench-service
tests: all $(completions) $(unit_tests) $(kernel_tests) $(system_tests) $(B)/tests/sim/sim

# Emulated thread by thread and under sanitizers these take minutes: `make SAN=1 check-long` has them.
long_san_tests := $(addprefix $(B)/tests/kernel/test_,cuda_attend cuda_product cuda_sample mixed)
check-unit: tests
	INFERD_BUILD=$(B) tests/run.sh $(unit_tests) $(filter-out $(if $(san),$(long_san_tests)),$(kernel_tests)) $(system_tests) $(script_tests)

# Simulated days: make sim SEEDS=1000000 [SEED=1].
SEEDS ?= 100000
SEED ?= 1
sim: $(B)/tests/sim/sim
	$(B)/tests/sim/sim $(SEED) $(SEEDS)

# Where there is a GPU, and nvcc to build for it: the same tests on the real thing.
gpu_programs := $(if $(cuda_lib),$(gpu_tests) $(whole_gpu_tests) $(B)/tests/gpu/golden/test_arch $(B)/tests/golden/test_greedy)
check-gpu: $(if $(cuda_lib),all) $(gpu_programs)
	@INFERD_BUILD=$(B) tests/gpu.sh $(gpu_programs)
# And under compute-sanitizer: the kernels alone, then whole steps.
check-gpu-sanitize: $(if $(cuda_lib),all) $(gpu_programs)
	@INFERD_BUILD=$(B) tests/gpu.sh --sanitize $(if $(cuda_lib),$(gpu_tests) $(addprefix $(B)/tests/gpu/kernel/test_,cuda pages))

# What a machine with a GPU and no compilers needs for tests/bench/gpu.sh and gpu_daemon.sh, cmocka
# included.
.PHONY: gpu bench-gpu
gpu: $(cuda_lib) $(backend_libs) $(gpu_programs) bundle $(addprefix $(B)/tests/bench/bench_,cuda model load serve)
	$(Q)cp -L "$$(ldd $(B)/tests/gpu/kernel/test_cuda | awk '/libcmocka/ {print $$3}')" $(B)/tests/gpu/
bench-gpu: gpu
	INFERD_BUILD=$(B) tests/bench/gpu.sh
	INFERD_BUILD=$(B) tests/bench/gpu_daemon.sh

check-layers:
	INFERD_BUILD=$(B) tests/layers.sh

# What takes minutes: perplexity over the whole held-out text; with SAN=1 the CUDA kernels.
check-long: all $(if $(san),$(long_san_tests))
	INFERD_LONG=1 INFERD_TEST_TIMEOUT=1800 INFERD_BUILD=$(B) tests/run.sh $(if $(san),$(long_san_tests),tests/golden/test_perplexity.sh)

sources := $(shell find include client daemon kernels tests -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh')
check-format:
	clang-format --dry-run --Werror $(sources)
format:
	clang-format -i $(sources)

deps:
	@./tools/deps.sh try
deps-check:
	@./tools/deps.sh check

try: deps
	@$(MAKE) --no-print-directory -j2 all
	@./tools/try.sh

check: deps-check
	@./tests/check.sh

bench: all
	tests/bench/run.sh
bench-serve: all
	tests/bench/serve.sh
bench-load: all
	tests/bench/load.sh
bench-service: all $(completions)
	tests/bench/service.sh

clean:
	rm -rf build

-include $(shell find $(O) -name '*.d' 2>/dev/null)
