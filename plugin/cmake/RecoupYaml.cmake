# yaml-cpp for recoup: programs link to recoup_yaml; plugins call recoup_yaml_inside(TARGET), which
# puts the policy with its yaml-cpp inside, out of sight: a plugin may meet a host that has another
# yaml-cpp, and may run where there is none.
#
#   source   RECOUP_YAML_SOURCE, a folder of yaml-cpp's sources, is built in
#   archive  the system's static library. Debian's is not position independent; with yaml-cpp's own
#            names and libstdc++'s private to one object (ld -r), nothing in it is left to relocate
#   shared   the system's shared library, installed beside the plugin; its names may meet a host's
set(RECOUP_YAML_SOURCE "" CACHE PATH "yaml-cpp's sources, to be built in; empty: the system's library")

add_library(recoup_yaml INTERFACE)
if(RECOUP_YAML_SOURCE)
  if(NOT EXISTS "${RECOUP_YAML_SOURCE}/include/yaml-cpp/yaml.h")
    message(FATAL_ERROR "RECOUP_YAML_SOURCE=${RECOUP_YAML_SOURCE}: no include/yaml-cpp/yaml.h there")
  endif()
  # Built here by itself: its own CMake files would add their options, tests and install rules.
  file(GLOB recoup_yaml_files "${RECOUP_YAML_SOURCE}/src/*.cpp")
  add_library(recoup_yaml_source STATIC EXCLUDE_FROM_ALL ${recoup_yaml_files})
  target_include_directories(recoup_yaml_source SYSTEM PUBLIC "${RECOUP_YAML_SOURCE}/include")
  target_compile_definitions(recoup_yaml_source PUBLIC YAML_CPP_STATIC_DEFINE)
  target_compile_features(recoup_yaml_source PUBLIC cxx_std_17)
  set_target_properties(recoup_yaml_source PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(recoup_yaml INTERFACE recoup_yaml_source)
  set(RECOUP_YAML source)
  set(recoup_yaml_includes "${RECOUP_YAML_SOURCE}/include")
  set(recoup_yaml_definitions YAML_CPP_STATIC_DEFINE)
  set(recoup_yaml_archive "$<TARGET_FILE:recoup_yaml_source>")
else()
  find_package(yaml-cpp REQUIRED)
  foreach(target yaml-cpp yaml-cpp::yaml-cpp)
    if(TARGET ${target})
      set(recoup_yaml_target ${target})
    endif()
  endforeach()
  set(recoup_yaml_includes $<TARGET_PROPERTY:${recoup_yaml_target},INTERFACE_INCLUDE_DIRECTORIES>)
  set(recoup_yaml_definitions $<TARGET_PROPERTY:${recoup_yaml_target},INTERFACE_COMPILE_DEFINITIONS>)
  set(RECOUP_YAML shared)
  find_library(RECOUP_YAML_ARCHIVE libyaml-cpp.a)
  mark_as_advanced(RECOUP_YAML_ARCHIVE)
  if(RECOUP_YAML_ARCHIVE)
    set(RECOUP_YAML archive)
    set(recoup_yaml_archive "${RECOUP_YAML_ARCHIVE}")
  endif()
endif()

# libstdc++ to go inside with it, without operator new and delete: those are the process's.
execute_process(COMMAND "${CMAKE_CXX_COMPILER}" ${CMAKE_CXX_COMPILER_ARG1} -print-file-name=libstdc++.a
  OUTPUT_VARIABLE recoup_stdcxx OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(RECOUP_SANITIZE OR (RECOUP_YAML STREQUAL "archive" AND NOT
   (EXISTS "${recoup_stdcxx}" AND CMAKE_OBJCOPY AND CMAKE_AR AND CMAKE_NM)))
  set(RECOUP_YAML shared)  # a sanitizer is to see every name
endif()
if(RECOUP_YAML STREQUAL "archive")
  # Whether this linker can: GNU ld and gold can, lld cannot.
  set(recoup_try "${CMAKE_CURRENT_BINARY_DIR}/yaml_try")
  file(MAKE_DIRECTORY "${recoup_try}")
  execute_process(COMMAND "${CMAKE_CXX_COMPILER}" ${CMAKE_CXX_COMPILER_ARG1} -r -nostdlib
    -Wl,--force-group-allocation -o "${recoup_try}/try.o" "${recoup_yaml_archive}"
    RESULT_VARIABLE recoup_failed OUTPUT_QUIET ERROR_QUIET)
  if(recoup_failed)
    set(RECOUP_YAML shared)
  endif()
endif()
if(RECOUP_YAML STREQUAL "shared" AND NOT RECOUP_SANITIZE)
  message(STATUS "recoup: the plugins need the shared yaml-cpp at run time (RECOUP_YAML_SOURCE builds it in)")
endif()

if(RECOUP_YAML STREQUAL "archive")
  target_link_libraries(recoup_yaml INTERFACE "${recoup_yaml_archive}")
  target_include_directories(recoup_yaml SYSTEM INTERFACE ${recoup_yaml_includes})
elseif(RECOUP_YAML STREQUAL "shared")
  target_link_libraries(recoup_yaml INTERFACE ${recoup_yaml_target})
endif()

# For the functions below, which other folders call.
set_target_properties(recoup_yaml PROPERTIES
  recoup_mode "${RECOUP_YAML}" recoup_archive "${recoup_yaml_archive}" recoup_stdcxx "${recoup_stdcxx}")

# One object: the policy, yaml-cpp and what they need of libstdc++; only recoup's names can be seen.
function(recoup_make_policy_object)
  get_target_property(mode recoup_yaml recoup_mode)
  if(TARGET recoup_policy_object OR mode STREQUAL "shared")
    return()
  endif()
  get_target_property(archive recoup_yaml recoup_archive)
  get_target_property(stdcxx recoup_yaml recoup_stdcxx)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}")
  set(object "${folder}/policy_with_yaml.o")
  set(before)
  set(more)
  set(needs)
  if(mode STREQUAL "archive")
    set(more "${folder}/libstdc++_part.a")
    execute_process(COMMAND "${CMAKE_AR}" t "${stdcxx}" OUTPUT_VARIABLE members)
    string(REGEX MATCHALL "(new|del)_op[a-z]*\\.o" members "${members}")
    set(before
      COMMAND ${CMAKE_COMMAND} -E copy "${stdcxx}" "${more}"
      COMMAND ${CMAKE_AR} d "${more}" ${members}
      COMMAND ${CMAKE_RANLIB} "${more}")
    add_library(recoup_libc OBJECT "${PROJECT_SOURCE_DIR}/plugin/cmake/libc_single_threaded.cc")
    set_target_properties(recoup_libc PROPERTIES POSITION_INDEPENDENT_CODE ON)
    list(PREPEND more $<TARGET_OBJECTS:recoup_libc>)
    set(needs recoup_libc)
  endif()
  add_custom_command(OUTPUT "${object}" ${before}
    COMMAND ${CMAKE_CXX_COMPILER} ${CMAKE_CXX_COMPILER_ARG1} -r -nostdlib -Wl,--force-group-allocation
      -o "${object}" -Wl,--whole-archive $<TARGET_FILE:recoup_policy_core> -Wl,--no-whole-archive
      "${archive}" ${more}
    # Names that the linker would keep unique in the whole process can be hidden once they are weak.
    COMMAND sh -c "\"$1\" --defined-only \"$2\" | sed -n 's/^[0-9a-f]* u //p' >\"$2.unique\""
      -- ${CMAKE_NM} "${object}"
    COMMAND ${CMAKE_OBJCOPY} "--weaken-symbols=${object}.unique" "${object}"
    COMMAND ${CMAKE_OBJCOPY} --wildcard "--keep-global-symbol=_ZN*6recoup*" "${object}"
    DEPENDS recoup_policy_core ${needs} COMMAND_EXPAND_LISTS VERBATIM
    COMMENT "Linking the policy with its yaml-cpp")
  add_custom_target(recoup_policy_object DEPENDS "${object}")
  set_property(TARGET recoup_policy_object PROPERTY recoup_object "${object}")
endfunction()

function(recoup_yaml_inside target)
  recoup_make_policy_object()
  if(TARGET recoup_policy_object)
    get_target_property(object recoup_policy_object recoup_object)
    set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    target_sources(${target} PRIVATE "${object}")
    add_dependencies(${target} recoup_policy_object)
    set_target_properties(${target} PROPERTIES RECOUP_YAML_INSIDE ON)
  else()
    set_target_properties(${target} PROPERTIES INSTALL_RPATH "$ORIGIN")
  endif()
endfunction()
