# SPDX-License-Identifier: Apache-2.0
# docs/man/NAME.SECTION.scd becomes NAME.SECTION. scdoc fails on a page that it cannot parse, and so does the build.

spillway_glob(man_sources GLOB docs/man/*.scd)
find_program(SCDOC scdoc)
mark_as_advanced(SCDOC)
if(NOT man_sources)
    message(STATUS "skipped: man pages (no docs/man/*.scd yet)")
elseif(NOT SCDOC)
    message(STATUS "skipped: man pages (scdoc is not installed: ./dev setup)")
else()
    set(man_pages)
    foreach(source IN LISTS man_sources)
        get_filename_component(page ${source} NAME_WLE)
        string(REGEX MATCH "[1-9]$" section ${page})
        if(NOT section)
            message(FATAL_ERROR "${source}: a man page is called NAME.SECTION.scd")
        endif()
        add_custom_command(
            OUTPUT man/${page}
            COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/man
            COMMAND sh -c "\"$1\" < \"$2\" > \"$3\" || { rm -f \"$3\"; exit 1; }" sh ${SCDOC}
                    ${CMAKE_SOURCE_DIR}/${source} ${CMAKE_BINARY_DIR}/man/${page}
            DEPENDS ${source} VERBATIM)
        list(APPEND man_pages ${CMAKE_BINARY_DIR}/man/${page})
        install(FILES ${CMAKE_BINARY_DIR}/man/${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
    endforeach()
    add_custom_target(man ALL DEPENDS ${man_pages})
endif()
