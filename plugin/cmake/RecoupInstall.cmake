# cmake --install: headers, libraries, the CMake package and the ready configurations. Everything is
# found from where the files are, so a prefix may be moved.
#
#   COMPONENT policy     headers of the contract, librecoup_policy.so, the program recoup, configurations
#   COMPONENT torch      the engine: its headers, librecoup_checkpoint.a and librecoup.so
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package "${CMAKE_INSTALL_LIBDIR}/cmake/recoup")

# Debug information stays in the build folder.
install(CODE "set(CMAKE_INSTALL_DO_STRIP TRUE)" ALL_COMPONENTS)

set_target_properties(recoup_host PROPERTIES EXPORT_NAME host)
set_target_properties(recoup_policy PROPERTIES EXPORT_NAME policy)
install(TARGETS recoup_host EXPORT recoup_host)
install(TARGETS recoup_policy EXPORT recoup_policy
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT policy)
install(DIRECTORY plugin/include/ TYPE INCLUDE COMPONENT policy)
install(FILES hooks/include/recoup/modules.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/recoup
  COMPONENT policy)
install(DIRECTORY configs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/recoup/configs COMPONENT policy
  FILES_MATCHING PATTERN "*.yaml")
install(EXPORT recoup_host NAMESPACE recoup:: DESTINATION ${package} COMPONENT policy
  FILE recoupHostTargets.cmake)
install(EXPORT recoup_policy NAMESPACE recoup:: DESTINATION ${package} COMPONENT policy
  FILE recoupPolicyTargets.cmake)
if(TARGET recoup_cli)
  install(TARGETS recoup_cli RUNTIME COMPONENT policy)
endif()
get_target_property(mode recoup_yaml recoup_mode)
if(mode STREQUAL "shared" AND NOT RECOUP_SANITIZE)
  # The plugins' $ORIGIN finds it beside them.
  install(IMPORTED_RUNTIME_ARTIFACTS ${recoup_yaml_target} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
    COMPONENT policy)
endif()

if(RECOUP_TORCH)
  set_target_properties(recoup_checkpoint PROPERTIES EXPORT_NAME checkpoint)
  set_target_properties(recoup PROPERTIES EXPORT_NAME plugin)
  install(TARGETS recoup_checkpoint EXPORT recoup_torch
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT torch)
  install(TARGETS recoup EXPORT recoup_torch
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT torch)
  install(FILES hooks/include/recoup/result.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/recoup
    COMPONENT torch)
  install(DIRECTORY hooks/include/recoup/checkpoint DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/recoup
    COMPONENT torch)
  install(EXPORT recoup_torch NAMESPACE recoup:: DESTINATION ${package} COMPONENT torch
    FILE recoupTorchTargets.cmake)
  install(FILES plugin/cmake/RecoupTorch.cmake DESTINATION ${package} COMPONENT torch)
  install(CODE "execute_process(COMMAND \"${CMAKE_STRIP}\" -g
    \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/librecoup_checkpoint.a\")"
    COMPONENT torch)
endif()

configure_package_config_file(plugin/cmake/recoupConfig.cmake.in
  "${CMAKE_CURRENT_BINARY_DIR}/recoupConfig.cmake" INSTALL_DESTINATION ${package}
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/recoupConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/recoupConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/recoupConfigVersion.cmake" DESTINATION ${package} COMPONENT policy)

# cpack: a .tar.gz and a .deb. The engine's LibTorch is nothing that a package manager knows.
set(CPACK_GENERATOR TGZ DEB)
set(CPACK_PACKAGE_CONTACT "the recoup project")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Per-layer activation recompute for training: policy and engine")
set(CPACK_PACKAGE_FILE_NAME "recoup-${PROJECT_VERSION}-Linux-${CMAKE_SYSTEM_PROCESSOR}")
if(RECOUP_TORCH)
  string(APPEND CPACK_PACKAGE_FILE_NAME "-torch${RECOUP_TORCH_VERSION}")
endif()
set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6 (>= 2.34), libstdc++6 (>= 11)")
set(CPACK_DEB_COMPONENT_INSTALL OFF)
include(CPack)
