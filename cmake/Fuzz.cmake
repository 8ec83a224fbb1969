# SPDX-License-Identifier: Apache-2.0
# Fuzzers, found by their names:
#
#   tests/fuzz/fuzz_X.c         fuzz/X   one program; what it tests is the real code of every static library
#   tests/fuzz/corpus/X.tar.gz           the inputs that `./dev fuzz` found worth keeping, unpacked into the build folder
#   tests/fuzz/found/X/*                 inputs that once found something: never removed
#   tests/fuzz/X.dict                    words that its inputs are made of
#
# Every build runs what is checked in, through a main() of our own. The preset `fuzz` links libFuzzer in its place, and its
# test goes on from there for a fixed number of runs.

set(fuzz_dir ${CMAKE_BINARY_DIR}/fuzz)
add_custom_target(fuzzers)
spillway_glob(fuzz_support GLOB tests/fuzz/support/*.c)
add_library(spillway-test-fuzz OBJECT ${fuzz_support}) # objects: what the linker is to --wrap must be there
target_link_options(spillway-test-fuzz INTERFACE LINKER:--wrap=malloc,--wrap=calloc,--wrap=free)

# Runs of the test, those of the corpus included: some seconds each. A target that is slow says so here.
set(fuzz_runs 60000)
set(fuzz_runs_client 4000)
set(fuzz_runs_config 8000)
set(fuzz_runs_device 2000)
set(fuzz_runs_request 4500)
set(fuzz_runs_request_race 3000)
set(fuzz_runs_session 1500)

# A target whose memory is to change between two reads has the code that reads it compiled once more, so that each load
# tells (tests/fuzz/changing.h). Linked before the libraries, it takes their place.
set(fuzz_changing_request daemon/request*.c daemon/ring.c)
set(fuzz_changing_client client/lib/ring*.c client/lib/call.c client/lib/queue.c client/lib/chunk.c)
set(fuzz_changing_gpu_port io/gpu_port.c)

# System calls of the code under test that the target answers itself.
set(fuzz_wrap_client connect mmap munmap poll send syscall)

function(spillway_fuzzer name)
    set(target fuzz_${name})
    add_executable(${target} tests/fuzz/fuzz_${name}.c)
    target_compile_definitions(${target} PRIVATE SPILLWAY_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                               SPILLWAY_FAKE_CUDA="${CMAKE_BINARY_DIR}/tests/fake/libcuda.so.1")
    add_dependencies(${target} spillway-fake-cuda)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${fuzz_dir})
    foreach(call IN LISTS fuzz_wrap_${name})
        target_link_options(${target} PRIVATE LINKER:--wrap=${call})
    endforeach()
    if(SPILLWAY_FUZZ STREQUAL libfuzzer AND fuzz_changing_${name})
        spillway_glob(changing GLOB ${fuzz_changing_${name}})
        add_library(${target}_changing OBJECT ${changing})
        target_compile_options(${target}_changing PRIVATE -fsanitize-coverage=trace-loads)
        target_include_directories(${target}_changing PRIVATE $<TARGET_PROPERTY:spillway-io,INTERFACE_INCLUDE_DIRECTORIES>)
        target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_changing>)
    endif()
    if(SPILLWAY_FUZZ STREQUAL libfuzzer)
        target_link_options(${target} PRIVATE -fsanitize=fuzzer)
    else()
        target_sources(${target} PRIVATE tests/fuzz/replay.c)
    endif()
    spillway_link(${target} PRIVATE spillway-test-fuzz spillway-test-unit ${all_libraries} Spillway::jsonc spillway-check m)

    set(inputs ${fuzz_dir}/corpus/${name})
    set(packed ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${name}.tar.gz)
    set(found ${CMAKE_SOURCE_DIR}/tests/fuzz/found/${name})
    set(folders ${inputs})
    file(MAKE_DIRECTORY ${inputs})
    if(EXISTS ${packed})
        add_custom_command(OUTPUT ${inputs}.unpacked DEPENDS ${packed}
                           COMMAND ${CMAKE_COMMAND} -E rm -rf ${inputs}
                           COMMAND ${CMAKE_COMMAND} -E make_directory ${inputs}
                           COMMAND ${CMAKE_COMMAND} -E chdir ${inputs} ${CMAKE_COMMAND} -E tar xzf ${packed}
                           COMMAND ${CMAKE_COMMAND} -E touch ${inputs}.unpacked)
        target_sources(${target} PRIVATE ${inputs}.unpacked)
    endif()
    if(EXISTS ${found})
        list(APPEND folders ${found})
    endif()
    if(SPILLWAY_FUZZ STREQUAL libfuzzer)
        set(runs ${fuzz_runs})
        if(fuzz_runs_${name})
            set(runs ${fuzz_runs_${name}})
        endif()
        set(options -seed=1 -runs=${runs} -timeout=60 -rss_limit_mb=4096 -error_exitcode=1 -artifact_prefix=${fuzz_dir}/${name}- -print_final_stats=1)
        if(EXISTS ${CMAKE_SOURCE_DIR}/tests/fuzz/${name}.dict)
            list(APPEND options -dict=${CMAKE_SOURCE_DIR}/tests/fuzz/${name}.dict)
        endif()
        file(MAKE_DIRECTORY ${fuzz_dir}/new/${name})
        spillway_test(fuzz/${name} fuzz 300 ${target} ${options} ${fuzz_dir}/new/${name} ${folders})
    else()
        spillway_test(fuzz/${name} fuzz 300 ${target} ${folders})
    endif()
    add_dependencies(fuzzers ${target})
endfunction()

spillway_glob(fuzz_sources GLOB tests/fuzz/fuzz_*.c)
foreach(source IN LISTS fuzz_sources)
    get_filename_component(name ${source} NAME_WLE)
    string(REGEX REPLACE "^fuzz_" "" name ${name})
    spillway_fuzzer(${name})
endforeach()
