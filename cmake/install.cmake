# The installed tree: headers, library, CMake package, pkg-config file and (if built) the command line.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS pagemill EXPORT pagemill
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TARGET pagemill_engine)
  install(TARGETS pagemill_engine EXPORT pagemill
          LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
          INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(DIRECTORY engine/include/pagemill DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
endif()
install(DIRECTORY include/pagemill DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pagemill)
install(EXPORT pagemill NAMESPACE pagemill:: FILE pagemill-config.cmake DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/pagemill-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/pagemill-config-version.cmake DESTINATION ${package_dir})

# Relative to where the file lies, so that the tree can be moved.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig
           OUTPUT_VARIABLE PAGEMILL_PC_TO_PREFIX)
configure_file(cmake/pagemill.pc.in ${CMAKE_CURRENT_BINARY_DIR}/pagemill.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/pagemill.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET pagemill_cli)
  file(RELATIVE_PATH bin_to_lib ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
  set_target_properties(pagemill_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${bin_to_lib}")
  install(TARGETS pagemill_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
