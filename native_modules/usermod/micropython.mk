# sprout_core and sprout_frame in firmware that is built with make: USER_C_MODULES is the folder above this one.

SPROUT_DIR := $(patsubst %/,%,$(dir $(USERMOD_DIR)))

SRC_USERMOD_C += $(SPROUT_DIR)/shell/shell.c $(SPROUT_DIR)/frame/module.c
# Kernels for another processor are empty files. -DSPROUT_PLAIN_KERNELS leaves out all of them.
SRC_USERMOD_LIB_C += $(wildcard $(SPROUT_DIR)/core/*.c $(SPROUT_DIR)/core/*/*.c)
SRC_USERMOD_LIB_C += $(SPROUT_DIR)/frame/frame.c
CFLAGS_USERMOD += -I$(USERMOD_DIR)

# The kernels are where the time goes. A warning of some compiler is no reason to have no firmware.
$(BUILD)/core/%.o: CFLAGS += -O2 -Wno-error
