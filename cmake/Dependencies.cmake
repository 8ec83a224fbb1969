# SPDX-License-Identifier: Apache-2.0
# Every library that is not ours, as Spillway::<name>. Each is included by one file or folder only
# (tests/lint/layers.conf), so a target that does not link one cannot use it.

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)

function(spillway_dependency name module)
    pkg_check_modules(DEP_${name} REQUIRED QUIET IMPORTED_TARGET GLOBAL ${module})
    add_library(Spillway::${name} ALIAS PkgConfig::DEP_${name})
endfunction()

spillway_dependency(uring liburing>=2.3)
spillway_dependency(systemd libsystemd>=252)
spillway_dependency(inih inih)
spillway_dependency(jsonc json-c)
# The shared libxxhash: Debian's carries the runtime-dispatched XXH3 (xxh_x86dispatch.h), plain XXH3 there is SSE2 only.
spillway_dependency(xxhash libxxhash>=0.8)

# libnuma has a .pc file in some distributions only.
find_library(NUMA_LIBRARY numa REQUIRED)
find_path(NUMA_INCLUDE_DIR numa.h REQUIRED)
mark_as_advanced(NUMA_LIBRARY NUMA_INCLUDE_DIR)
add_library(Spillway::numa UNKNOWN IMPORTED)
set_target_properties(Spillway::numa PROPERTIES IMPORTED_LOCATION ${NUMA_LIBRARY})

if(BUILD_TESTING)
    pkg_check_modules(DEP_check QUIET IMPORTED_TARGET GLOBAL check>=0.15)
    if(DEP_check_FOUND)
        add_library(Spillway::check ALIAS PkgConfig::DEP_check)
    else()
        message(STATUS "skipped: tests (libcheck is not installed: ./dev setup)")
        set(BUILD_TESTING OFF)
    endif()
endif()
