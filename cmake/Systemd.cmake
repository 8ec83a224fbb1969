# SPDX-License-Identifier: Apache-2.0
# Units, user and directories. The paths are systemd's own only when the prefix is /usr; else they lie under the prefix
# and an administrator links them.

set(SPILLWAY_BINDIR ${CMAKE_INSTALL_FULL_BINDIR})
configure_file(systemd/spillwayd.service.in systemd/spillwayd.service @ONLY)
configure_file(systemd/spillwayd.socket systemd/spillwayd.socket COPYONLY)

install(FILES ${CMAKE_BINARY_DIR}/systemd/spillwayd.service systemd/spillwayd.socket DESTINATION lib/systemd/system)
install(FILES systemd/spillway.sysusers DESTINATION lib/sysusers.d RENAME spillway.conf)
install(FILES systemd/spillway.tmpfiles DESTINATION lib/tmpfiles.d RENAME spillway.conf)
