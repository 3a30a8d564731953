# What every target of recoup is compiled with, and nothing of a parent project's.

# recoup_warnings: link it PRIVATE, as $<BUILD_INTERFACE:recoup_warnings> where the target is
# installed.
add_library(recoup_warnings INTERFACE)
target_compile_options(recoup_warnings INTERFACE -Wall -Wextra -Wno-unused-parameter)
if(RECOUP_WERROR)
  target_compile_options(recoup_warnings INTERFACE -Werror)
endif()

if(RECOUP_SANITIZE STREQUAL "address")
  set(flags -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
elseif(RECOUP_SANITIZE STREQUAL "thread")
  set(flags -fsanitize=thread -fno-omit-frame-pointer)
elseif(RECOUP_SANITIZE)
  message(FATAL_ERROR "RECOUP_SANITIZE=${RECOUP_SANITIZE}: allowed are address, thread or nothing")
else()
  set(flags)
endif()
add_compile_options(${flags})  # this folder's targets only: a parent's are above it
add_link_options(${flags})
