# SPDX-License-Identifier: Apache-2.0
# The Python package, ready to be imported from python/ of the build folder: client/python/spillway/, and its extension,
# which finds libspillway of this build. What users install is made from client/python/ by pip. An interpreter without
# the sanitizer's runtime cannot load what has it.

if(SPILLWAY_SANITIZE OR SPILLWAY_FUZZ)
    return()
endif()
find_package(Python3 COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
if(Python3_FOUND)
    execute_process(COMMAND ${Python3_EXECUTABLE} -c "import cffi" RESULT_VARIABLE no_cffi OUTPUT_QUIET ERROR_QUIET)
endif()
if(NOT TARGET spillway)
    message(STATUS "skipped: the Python package (no libspillway yet)")
elseif(NOT Python3_FOUND OR NOT Python3_Development.Module_FOUND)
    message(STATUS "skipped: the Python package (Python.h is not installed: ./dev setup)")
elseif(no_cffi)
    message(STATUS "skipped: the Python package (cffi is not installed: ./dev setup)")
else()
    set(python_dir ${CMAKE_BINARY_DIR}/python)
    set(python_source ${CMAKE_SOURCE_DIR}/client/python)
    spillway_glob(python_headers GLOB include/spillway/*.h)
    list(TRANSFORM python_headers PREPEND ${CMAKE_SOURCE_DIR}/)

    add_custom_command(
        OUTPUT ${python_dir}/_native.c
        COMMAND ${CMAKE_COMMAND} -E make_directory ${python_dir}
        COMMAND ${CMAKE_COMMAND} -E env PYTHONDONTWRITEBYTECODE=1 ${Python3_EXECUTABLE} ${python_source}/build_ffi.py
                ${CMAKE_SOURCE_DIR}/include ${python_dir}/_native.c
        DEPENDS ${python_source}/build_ffi.py ${python_headers} VERBATIM)
    Python3_add_library(spillway-python MODULE ${python_dir}/_native.c)
    target_include_directories(spillway-python PRIVATE ${CMAKE_SOURCE_DIR}/include)
    target_compile_options(spillway-python PRIVATE -w) # it is cffi's code, not ours
    target_link_libraries(spillway-python PRIVATE spillway)
    set_target_properties(spillway-python PROPERTIES
        PREFIX "" OUTPUT_NAME _native SUFFIX ".abi3.so" LIBRARY_OUTPUT_DIRECTORY ${python_dir}/spillway
        BUILD_RPATH_USE_ORIGIN ON)

    set(python_copies)
    file(GLOB python_files CONFIGURE_DEPENDS RELATIVE ${python_source}
         ${python_source}/spillway/*.py ${python_source}/spillway/torch/*.py ${python_source}/spillway/py.typed)
    foreach(file IN LISTS python_files)
        add_custom_command(OUTPUT ${python_dir}/${file}
                           COMMAND ${CMAKE_COMMAND} -E copy ${python_source}/${file} ${python_dir}/${file}
                           DEPENDS ${python_source}/${file} VERBATIM)
        list(APPEND python_copies ${python_dir}/${file})
    endforeach()
    add_custom_target(python ALL DEPENDS spillway-python ${python_copies})
endif()
