# SPDX-License-Identifier: Apache-2.0
# Tests are found by name, and every one exits 0 (passed), 77 (skipped: it said why) or anything else (failed).
#
#   tests/unit/test_X.c                     unit     one program, linked with every static library and libcheck
#   tests/unit/support/*.c                           a library that all of them may use
#   tests/check/*.c                                  what stands between the tests and libcheck
#   tests/fake/*.c                                   libcuda.so.1, a CUDA driver without a GPU, in the folder tests/fake of
#                                                    the build: for whoever has that in LD_LIBRARY_PATH
#   tests/sim/*.c                           sim      one program, spillsim
#   tests/fuzz/fuzz_X.c                     fuzz     see cmake/Fuzz.cmake
#   tests/system/test_X.c, test_X.sh        system   against the real programs, which lie in $SPILLWAY_BIN
#   tests/system/support/*.c                         a library for the .c ones
#   tests/system/test_*torture*             torture  not in `./dev test`: hours, for `./dev torture`
#   tests/fail/                             fail     each call fails: a sample; all of them: torture. No sanitizer
#   tests/python/test_X.py                  python   the Python package, where it was built, with the real programs
#   tests/torture/*.c                       system   one program, spilltorture, where the daemon has kill points
#   tests/lint/*                            lint     the tree itself

# What is worth running under TSan, by the file's name. Everything else is one thread, or leaves no trace there (TSan
# does not see what another process writes). Under TSan nothing else is built; elsewhere these are tests like any other.
set(SPILLWAY_THREADS_TESTS
    "/test_[^/]*_threads\\.c$"
    "/test_ring[^/]*\\.c$"
    "/test_worker[^/]*\\.c$"
    "/test_client\\.c$"
    "/test_gpu_helper[^/]*\\.c$"
    "/system/test_gpu_ranges\\.c$" # the library's thread, beside who waits for its jobs
    "/system/test_hot_restart\\.c$" # the library's watcher, beside everybody who is in a call
    "/system/test_[^/]*tsan[^/]*$")

# What runs without sanitizers only (label `plain`): an emulated machine, where they take minutes, and mere arithmetic.
set(SPILLWAY_PLAIN_TESTS "/system/test_vm_[^/]*$" "/unit/test_policy_generated\\.c$")

find_package(Python3 COMPONENTS Interpreter)
set(tests_dir ${CMAKE_BINARY_DIR}/tests)
set(test_environment
    SPILLWAY_BIN=${CMAKE_BINARY_DIR}
    SPILLWAY_SOURCE=${CMAKE_SOURCE_DIR}
    ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:detect_leaks=1
    UBSAN_OPTIONS=print_stacktrace=1
    CK_DEFAULT_TIMEOUT=120 # a test of libcheck ends after 4 s otherwise, which a busy machine may need
    PYTHONDONTWRITEBYTECODE=1
    # A process with threads lingers when it ends, for races then: not for a whole second, with hundreds of processes.
    TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:atexit_sleep_ms=100)
# Real traces are not part of the project: SPILLWAY_TRACE names one, else a folder `traces` beside the checkout is looked
# for. The test that wants one says that it is skipped without.
file(GLOB real_trace ${CMAKE_SOURCE_DIR}/../*/traces/mooncake_conversation.jsonl)
if(DEFINED ENV{SPILLWAY_TRACE})
    list(APPEND test_environment SPILLWAY_TRACE=$ENV{SPILLWAY_TRACE})
elseif(real_trace)
    list(GET real_trace 0 real_trace)
    list(APPEND test_environment SPILLWAY_TRACE=${real_trace})
endif()
if(SPILLWAY_SANITIZE)
    list(APPEND test_environment SPILLWAY_SANITIZE=${SPILLWAY_SANITIZE})
endif()

# Sets <ret> to whether the text matches one of the patterns.
function(spillway_matches ret text)
    set(${ret} OFF PARENT_SCOPE)
    foreach(pattern IN LISTS ARGN)
        if(text MATCHES ${pattern})
            set(${ret} ON PARENT_SCOPE)
        endif()
    endforeach()
endfunction()

# Sets <ret> to the test's label, `plain` instead of it if it is one of SPILLWAY_PLAIN_TESTS; empty: it does not run here.
function(spillway_label ret label file)
    spillway_matches(is_plain ${file} ${SPILLWAY_PLAIN_TESTS})
    if(is_plain AND SPILLWAY_SANITIZE)
        set(label "")
    elseif(is_plain)
        set(label plain)
    endif()
    set(${ret} "${label}" PARENT_SCOPE)
endfunction()

# spillway_test(<name> <label> <timeout_s> <command>...)
function(spillway_test name labels timeout_s)
    add_test(NAME ${name} COMMAND ${ARGN} WORKING_DIRECTORY ${CMAKE_BINARY_DIR})
    set_tests_properties(${name} PROPERTIES
        LABELS "${labels}" TIMEOUT ${timeout_s} SKIP_RETURN_CODE 77 ENVIRONMENT "${test_environment}")
endfunction()

function(spillway_test_program target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
    add_executable(${target} ${arg_SOURCES})
    target_compile_definitions(${target} PRIVATE SPILLWAY_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                               SPILLWAY_FAKE_CUDA="${tests_dir}/fake/libcuda.so.1")
    add_dependencies(${target} spillway-fake-cuda)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${tests_dir})
    spillway_link(${target} PRIVATE ${arg_LINK})
endfunction()

set(all_libraries spillway-gpu-helper spillway-daemon spillway-tiering spillway-io spillway-static)

# libcheck, with assertions that cost next to nothing.
add_library(spillway-check STATIC tests/check/mark_point.c)
target_link_libraries(spillway-check PUBLIC Spillway::check)
target_link_options(spillway-check INTERFACE LINKER:--wrap=_mark_point)

# ── unit and sim ───────────────────────────────────────────────────────────────────────────────────────────────────

spillway_static_library(spillway-test-unit GLOB tests/unit/support/*.c LINK ${all_libraries} spillway-check)
target_compile_definitions(spillway-test-unit PRIVATE SPILLWAY_FAKE_CUDA="${tests_dir}/fake/libcuda.so.1")

# Opened at run time, as the real one is, so it is nothing to link. Exports the driver's functions alone.
spillway_glob(fake_cuda_sources GLOB tests/fake/*.c)
add_library(spillway-fake-cuda SHARED ${fake_cuda_sources})
set_source_files_properties(tests/fake/kernel.c PROPERTIES COMPILE_OPTIONS -O2) # it moves every byte, 16 at a time
set_target_properties(spillway-fake-cuda PROPERTIES
    OUTPUT_NAME cuda VERSION 1 SOVERSION 1 LINKER_LANGUAGE C C_VISIBILITY_PRESET hidden
    LIBRARY_OUTPUT_DIRECTORY ${tests_dir}/fake)
target_link_libraries(spillway-fake-cuda PRIVATE spillway-io Threads::Threads)
target_link_options(spillway-fake-cuda PRIVATE LINKER:--exclude-libs,ALL)
# It is NVML and cuBLAS as well, for who looks for these.
foreach(library libnvidia-ml.so.1 libcublas.so.12)
    add_custom_command(TARGET spillway-fake-cuda POST_BUILD
                       COMMAND ${CMAKE_COMMAND} -E create_symlink libcuda.so.1 ${tests_dir}/fake/${library})
endforeach()

spillway_glob(unit_sources GLOB tests/unit/test_*.c)
foreach(source IN LISTS unit_sources)
    get_filename_component(name ${source} NAME_WLE)
    spillway_label(labels unit ${source})
    if(NOT labels)
        continue()
    endif()
    spillway_matches(is_threads ${source} ${SPILLWAY_THREADS_TESTS})
    if(is_threads)
        list(APPEND labels threads)
    elseif(SPILLWAY_SANITIZE STREQUAL thread)
        continue()
    endif()
    spillway_test_program(unit_${name} SOURCES ${source}
                          LINK spillway-test-unit ${all_libraries} Spillway::jsonc spillway-check m)
    spillway_test(unit/${name} "${labels}" 120 unit_${name})
endforeach()
if(TARGET unit_test_gpu_helper AND TARGET spillway-gpu) # it runs the program too
    add_dependencies(unit_test_gpu_helper spillway-gpu)
endif()
# Our declarations of the CUDA driver are compared with NVIDIA's headers where those are.
find_path(CUDA_INCLUDE_DIR cuda.h HINTS ENV CUDA_PATH PATHS /usr/local/cuda /opt/cuda PATH_SUFFIXES include)
mark_as_advanced(CUDA_INCLUDE_DIR)
if(CUDA_INCLUDE_DIR AND TARGET unit_test_cuda_abi)
    target_include_directories(unit_test_cuda_abi SYSTEM PRIVATE ${CUDA_INCLUDE_DIR})
endif()

spillway_glob(sim_sources GLOB tests/sim/*.c)
if(sim_sources AND NOT SPILLWAY_SANITIZE STREQUAL thread)
    # The code that decides, once more, with its named points (include/base/point.h) awake.
    spillway_static_library(spillway-pointed
                            GLOB tiering/*.c io/log*.c io/segment.c io/store*.c io/superblock.c daemon/request*.c
                                 daemon/ring.c daemon/deadline.c
                            LINK spillway-io m)
    target_compile_definitions(spillway-pointed PRIVATE SPILLWAY_SIM)
    # First what has the points: of two libraries with the same functions the linker takes the first.
    spillway_test_program(spillsim SOURCES ${sim_sources}
                          LINK spillway-pointed spillway-test-unit ${all_libraries} Spillway::jsonc spillway-check m)
    target_compile_definitions(spillsim PRIVATE SPILLWAY_SIM)
    # A process dies before, after and inside these (tests/sim/hot.c).
    foreach(function record_end record_free lease_end truth_chunk_set truth_space_set store_drop store_txn_commit
                     chunk_give_back extent_orphan)
        target_link_options(spillsim PRIVATE "LINKER:--wrap=${function}")
    endforeach()
    if(NOT SPILLWAY_SANITIZE) # tests/sim/tables.c
        target_link_options(spillsim PRIVATE LINKER:--wrap=calloc LINKER:--wrap=free)
    endif()
    set_target_properties(spillsim PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
    # Where sanitizers are on, a few for them; a thousand without. Two processes side by side.
    if(SPILLWAY_SANITIZE)
        spillway_test(sim/seeds sim 900 spillsim --seeds 30 --ops 10000 --jobs 2 --first 100001)
    else()
        spillway_test(sim/seeds sim 900 spillsim --seeds 1000 --ops 10000 --jobs 2)
    endif()
    set_tests_properties(sim/seeds PROPERTIES PROCESSORS 2)
    if(NOT SPILLWAY_SANITIZE)
        spillway_test(sim/regressions sim 300 spillsim --list ${CMAKE_SOURCE_DIR}/tests/sim/seeds.txt)
        spillway_test(sim/harsh sim 900 spillsim --seeds 20 --ops 10000 --jobs 2 --first 1000000000)
        spillway_test(sim/crowded sim 900 spillsim --seeds 20 --ops 10000 --jobs 2 --first 2000000000)
        spillway_test(sim/orderly sim 900 spillsim --seeds 20 --ops 10000 --jobs 2 --first 3000000000)
        set_tests_properties(sim/harsh sim/crowded sim/orderly PROPERTIES PROCESSORS 2)
        spillway_test(lint/mutants lint 60 bash ${CMAKE_SOURCE_DIR}/tests/sim/mutate.sh --check)
        spillway_test(sim/mutations torture 36000 bash ${CMAKE_SOURCE_DIR}/tests/sim/mutate.sh)
    endif()
    spillway_test(sim/torture torture 36000 spillsim --seeds 20000 --ops 10000 --jobs 2 --first 200001)
endif()

# ── torture ────────────────────────────────────────────────────────────────────────────────────────────────────────

# A real daemon that is ended again and again; it needs one that was built with kill points.
spillway_glob(torture_sources GLOB tests/torture/*.c tests/system/support/manager.c)
if(SPILLWAY_KILL_POINTS AND NOT SPILLWAY_SANITIZE STREQUAL thread)
    spillway_test_program(spilltorture SOURCES ${torture_sources}
                          LINK spillway-test-unit ${all_libraries} Spillway::jsonc spillway-check m)
    set_target_properties(spilltorture PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
    spillway_test(system/kill_points system 600 spilltorture kill --seed 1 --number 50)
    spillway_test(system/kill_points_hot system 600 spilltorture kill --hot --seed 1 --number 25)
    spillway_test(system/power_loss system 300 spilltorture power --seed 1 --runs 2 --number 150)
    spillway_test(torture/kill_points torture 36000 spilltorture kill --number 10000)
    spillway_test(torture/kill_points_hot torture 36000 spilltorture kill --hot --number 10000)
    spillway_test(torture/power_loss torture 36000 spilltorture power --runs 20 --number 0)
endif()

# ── fuzz ───────────────────────────────────────────────────────────────────────────────────────────────────────────

if(NOT SPILLWAY_SANITIZE STREQUAL thread)
    include(Fuzz)
endif()

# ── system ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# The driver's table is compiled in once more: tests use it as an application uses CUDA.
spillway_static_library(spillway-test-system GLOB tests/system/support/*.c io/cuda_driver.c
                        LINK spillway Spillway::jsonc spillway-check)

spillway_glob(system_sources GLOB tests/system/test_*.c tests/system/test_*.sh)
foreach(source IN LISTS system_sources)
    get_filename_component(name ${source} NAME_WLE)
    spillway_label(labels system ${source})
    if(NOT labels)
        continue()
    endif()
    set(timeout_s 300)
    if(name MATCHES "^test_vm_") # an emulated machine, beside other tests
        set(timeout_s 600)
    endif()
    spillway_matches(is_threads ${source} ${SPILLWAY_THREADS_TESTS})
    if(is_threads)
        list(APPEND labels threads)
    elseif(SPILLWAY_SANITIZE STREQUAL thread)
        continue()
    elseif(name MATCHES torture)
        set(labels torture)
        set(timeout_s 36000)
    endif()
    if(source MATCHES "\\.c$")
        spillway_test_program(system_${name} SOURCES ${source}
                              LINK spillway-test-system spillway Spillway::jsonc spillway-check Threads::Threads m)
        spillway_test(system/${name} "${labels}" ${timeout_s} system_${name})
    else()
        spillway_test(system/${name} "${labels}" ${timeout_s} bash ${CMAKE_SOURCE_DIR}/${source})
    endif()
    # Library, helper and test find the fake driver where the loader looks first; a real one with SPILLWAY_TEST_GPU.
    if(name MATCHES "^test_gpu_" AND NOT DEFINED ENV{SPILLWAY_TEST_GPU})
        set_property(TEST system/${name} APPEND PROPERTY ENVIRONMENT LD_LIBRARY_PATH=${tests_dir}/fake)
    endif()
endforeach()

# The short form of a torture.
if(TARGET system_test_race_torture)
    spillway_test(system/test_race system 300 system_test_race_torture)
endif()

# Helpers of GPUs are not filtered unless they are told to.
if(TARGET system_test_gpu_path)
    spillway_test(system/test_gpu_path_seccomp system 300 system_test_gpu_path)
    get_test_property(system/test_gpu_path ENVIRONMENT gpu_path_environment)
    set_tests_properties(system/test_gpu_path_seccomp PROPERTIES
        ENVIRONMENT "${gpu_path_environment};SPILLWAY_TEST_GPU_SECCOMP=1")
endif()

# What runs in another machine, beside its scripts.
if(NOT SPILLWAY_SANITIZE STREQUAL thread)
    spillway_test_program(system_hot_client SOURCES tests/system/vm/hot_client.c
                          LINK spillway-test-system spillway Spillway::jsonc spillway-check Threads::Threads m)
endif()

# ── python ─────────────────────────────────────────────────────────────────────────────────────────────────────────

spillway_glob(python_tests GLOB tests/python/test_*.py)
if(TARGET python)
    foreach(source IN LISTS python_tests)
        get_filename_component(name ${source} NAME_WLE)
        spillway_test(python/${name} python 120 ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/${source})
        set_property(TEST python/${name} APPEND PROPERTY ENVIRONMENT PYTHONPATH=${CMAKE_BINARY_DIR}/python)
        if(name STREQUAL "test_gpu" AND NOT DEFINED ENV{SPILLWAY_TEST_GPU})
            set_property(TEST python/${name} APPEND PROPERTY ENVIRONMENT LD_LIBRARY_PATH=${tests_dir}/fake)
        endif()
    endforeach()
endif()

# ── fail ───────────────────────────────────────────────────────────────────────────────────────────────────────────

# Each call of the real programs fails: a library that is loaded before all others, a client that it is done to, and the
# driver. A sanitizer's own functions do not bear that anything stands before them, so these are the programs as they are
# installed; descriptors, threads and heap are counted by the test itself.
spillway_glob(fail_sources GLOB tests/fail/work*.c)
if(Python3_FOUND AND NOT SPILLWAY_SANITIZE)
    add_library(failcalls SHARED tests/fail/interpose.c tests/fail/trap.c tests/fail/completion.c)
    set_target_properties(failcalls PROPERTIES LINKER_LANGUAGE C C_VISIBILITY_PRESET hidden
                          LIBRARY_OUTPUT_DIRECTORY ${tests_dir})
    target_compile_options(failcalls PRIVATE -U_FORTIFY_SOURCE)
    target_link_libraries(failcalls PRIVATE ${CMAKE_DL_LIBS})
    spillway_test_program(fail_workload SOURCES ${fail_sources} io/cuda_driver.c LINK spillway Threads::Threads)
    add_dependencies(fail_workload failcalls programs)
    set(fail_command ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/fail/failcalls.py)
    spillway_test(fail/sample fail 300 ${fail_command} --seconds 24)
    spillway_test(fail/all torture 36000 ${fail_command})
    set_tests_properties(fail/sample fail/all PROPERTIES PROCESSORS 2)
endif()

# ── lint ───────────────────────────────────────────────────────────────────────────────────────────────────────────

if(Python3_FOUND)
    spillway_test(lint/layers lint 60 ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/lint/layers.py)
    spillway_test(lint/layers_can_fail lint 60 ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/lint/test_layers.py)
    spillway_test(lint/tally lint 60 ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/lint/test_tally.py)
    spillway_test(lint/results lint 60 ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/bench/test_results.py)
    spillway_test(lint/python lint 60 ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/lint/python.py)
    spillway_test(lint/peers lint 60 ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/tests/lint/test_peers.py)
endif()
spillway_test(lint/ptx lint 120 bash ${CMAKE_SOURCE_DIR}/client/gpu/ptx.sh --check)
foreach(name format headers scripts types unit_file exports)
    spillway_test(lint/${name} lint 120 bash ${CMAKE_SOURCE_DIR}/tests/lint/${name}.sh)
endforeach()

# ── order ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# Most tests with a daemon wait more than they compute: they run two at a time where there are two processors. Not these:
# six clients for a minute, and what sets aside hugepages of the whole machine, which any daemon would take.
if(TEST system/test_mix)
    set_tests_properties(system/test_mix PROPERTIES PROCESSORS 2)
endif()
foreach(name unit/test_memory system/test_knobs system/test_memory_returns)
    if(TEST ${name})
        set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
    endif()
endforeach()

# The longest first, so that none of them runs on alone at the end, and before them what takes all processors. Seconds.
set(spillway_costs
    sim/seeds 1000 system/test_mix 900 fail/sample 800 system/test_vm_numa 120
    system/test_gpu_bench 60 unit/test_policy_generated 50 system/test_bench 40 unit/test_store_crash 40
    unit/test_store_cleaner 40 unit/test_ring_wakeup 35 system/test_systemd 30 system/test_engine_tsan 30
    system/test_gpu_deaths 30 sim/regressions 30 system/test_hot_restart 25 system/kill_points 22 system/kill_points_hot 50 system/power_loss 20
    system/test_gpu_restart 20 unit/test_gpu_bad_helper 20 unit/test_tiering_durable 20 fuzz/device 19
    unit/test_gpu_helper_faults 20 system/test_gpu_path 16 system/test_gpu_path_seccomp 16 unit/test_gpu_helper 15 unit/test_client 15
    unit/test_store_room 15 system/test_daemon_device 15
    unit/test_tiering_chain 14 fuzz/client 13 fuzz/request 13 fuzz/request_race 13 python/test_torch 13
    unit/test_isolation 12 system/test_gpu_ranges 11 system/test_daemon_hostile 11 unit/test_gpu_kernels 9
    system/test_device_refused 8 unit/test_adam 8 system/test_gpu_alloc 8 system/test_gpu_hostile 8 unit/test_warm 8)
while(spillway_costs)
    list(POP_FRONT spillway_costs name seconds)
    if(TEST ${name})
        set_tests_properties(${name} PROPERTIES COST ${seconds})
    endif()
endwhile()
