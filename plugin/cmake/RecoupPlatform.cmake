# Where recoup runs: Linux on x86_64 and aarch64.
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  message(FATAL_ERROR "recoup supports Linux (x86_64, aarch64) only; this build is for ${CMAKE_SYSTEM_NAME}")
elseif(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64|aarch64|arm64)$")
  message(WARNING "recoup is tested on x86_64 and built for aarch64; nobody has tried ${CMAKE_SYSTEM_PROCESSOR}")
endif()
