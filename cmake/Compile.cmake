# SPDX-License-Identifier: Apache-2.0
# How everything is compiled: language, warnings, optimisation, sanitizers, hardening.

if(NOT CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    message(FATAL_ERROR "Spillway is written for gcc and clang, this is ${CMAKE_C_COMPILER_ID}")
endif()

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON) # gnu17
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
include(CheckPIESupported)
check_pie_supported(LANGUAGES C)

# One optimisation level a preset, set below; CMake's build types would add NDEBUG. Assertions stay in: they are for our
# own bugs, and a daemon that goes on after one may write wrong bytes.
set(CMAKE_BUILD_TYPE "" CACHE STRING "Unused: see SPILLWAY_SANITIZE" FORCE)

find_program(CCACHE ccache)
mark_as_advanced(CCACHE)
if(CCACHE AND NOT CMAKE_C_COMPILER_LAUNCHER)
    set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
endif()

# Includes are relative to the root of the repository, and nothing else is on the path.
include_directories(${CMAKE_SOURCE_DIR})
add_compile_definitions(_GNU_SOURCE SPILLWAY_VERSION="${PROJECT_VERSION}")

add_compile_options(-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla
                    -g -fno-omit-frame-pointer)
if(SPILLWAY_WERROR)
    add_compile_options(-Werror)
endif()
if(SPILLWAY_KILL_POINTS)
    add_compile_definitions(SPILLWAY_KILL_POINTS)
endif()

if(SPILLWAY_FUZZ STREQUAL libfuzzer)
    add_compile_options(-fsanitize=fuzzer-no-link -fsanitize-coverage-ignorelist=${CMAKE_SOURCE_DIR}/cmake/fuzz-ignore.txt)
elseif(SPILLWAY_FUZZ STREQUAL coverage)
    add_compile_options(-fprofile-instr-generate -fcoverage-mapping)
    add_link_options(-fprofile-instr-generate)
endif()

if(SPILLWAY_SANITIZE)
    set(optimisation -O1)
    if(SPILLWAY_FUZZ)
        set(optimisation -O2) # more inputs a second
    endif()
    add_compile_options(${optimisation} -fsanitize=${SPILLWAY_SANITIZE} -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${SPILLWAY_SANITIZE})
    if(CMAKE_C_COMPILER_ID STREQUAL GNU)
        # Instrumentation confuses gcc's flow analysis; the release build keeps the warning.
        add_compile_options(-Wno-maybe-uninitialized)
    endif()
else()
    # A daemon that reads hostile memory is built to fail early.
    add_compile_options(-O2 -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
        add_compile_options(-fstack-clash-protection -fcf-protection)
        if(CMAKE_C_COMPILER_ID STREQUAL GNU)
            # Where gcc's generic tuning clears a struct with `rep stos`, which takes some 15 ns to start: several for
            # each key of a list.
            add_compile_options(-mmemset-strategy=vector_loop:512:noalign,libcall:-1:noalign)
        endif()
    endif()
    add_link_options(LINKER:-z,relro,-z,now,-z,noexecstack)
endif()
