# sprout_core and sprout_frame in firmware that is built with CMake: USER_C_MODULES is this file.

set(SPROUT_DIR ${CMAKE_CURRENT_LIST_DIR}/..)
file(GLOB SPROUT_CORE CONFIGURE_DEPENDS ${SPROUT_DIR}/core/*.c)
# Those for another processor are empty files. -DSPROUT_PLAIN_KERNELS leaves out all of them.
file(GLOB SPROUT_KERNELS CONFIGURE_DEPENDS ${SPROUT_DIR}/core/*/*.c)

# The kernels are where the time goes. A warning of some compiler is no reason to have no firmware.
set_source_files_properties(${SPROUT_KERNELS} ${SPROUT_CORE} PROPERTIES
    COMPILE_OPTIONS "-O2;-Wno-error")

add_library(usermod_sprout INTERFACE)
target_sources(usermod_sprout INTERFACE
    ${SPROUT_KERNELS} ${SPROUT_CORE} ${SPROUT_DIR}/shell/shell.c
    ${SPROUT_DIR}/frame/frame.c ${SPROUT_DIR}/frame/module.c)
target_include_directories(usermod_sprout INTERFACE ${CMAKE_CURRENT_LIST_DIR})

target_link_libraries(usermod INTERFACE usermod_sprout)
