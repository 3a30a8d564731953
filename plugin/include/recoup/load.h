/* Opens a recoup plugin, for C and C++ hosts alike: dlopen() and dlsym() with what they lack, one
 * complete sentence for everything that can be wrong with a file. glibc's dlopen() dies (SIGBUS) of
 * a library that was copied by half, and a symbol that is data would be called as code. */
#ifndef RECOUP_LOAD_H_
#define RECOUP_LOAD_H_

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* for dladdr1(); without effect where the C library was included before */
#endif

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <elf.h>
#endif

#include "recoup/plugin.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes a sentence; returns null, so that a failing function can return it. */
static inline const recoup_plugin_v1* recoup_load_fail(char* error, size_t size, const char* format,
                                                       ...) {
  va_list values;
  if (error == NULL || size == 0) return NULL;
  va_start(values, format);
  vsnprintf(error, size, format, values);
  va_end(values);
  return NULL;
}

/* Why the file cannot be a whole library, or null. Files that cannot be opened are dlopen()'s to
 * name, and so are names without a slash, which it searches for. */
static inline const char* recoup_broken_library(const char* path) {
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
  const char* why = NULL;
  Elf64_Ehdr header;
  Elf64_Phdr part;
  long size;
  int i;
  FILE* file = strchr(path, '/') != NULL ? fopen(path, "rb") : NULL;
  if (file == NULL) return NULL;
  if (fseek(file, 0, SEEK_END) != 0 || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) != 0) {
    why = "it is no file that can be read from end to end";
  } else if (fread(&header, sizeof(header), 1, file) != 1) {
    why = ferror(file) ? "it cannot be read" : "it is too short to be a library";
  } else if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
             header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_type != ET_DYN ||
             header.e_phentsize != sizeof(part)) {
    why = "it is no 64-bit shared library";
#ifdef __x86_64__
  } else if (header.e_machine != EM_X86_64) {
    why = "it was built for another processor than x86_64";
#else
  } else if (header.e_machine != EM_AARCH64) {
    why = "it was built for another processor than aarch64";
#endif
  } else if (header.e_shoff > (unsigned long)size ||
             (unsigned long)header.e_shnum * header.e_shentsize > size - header.e_shoff) {
    why = "the file is truncated; copy or build it again";
  } else {
    for (i = 0; why == NULL && i < header.e_phnum; ++i) {
      if (fseek(file, (long)(header.e_phoff + i * sizeof(part)), SEEK_SET) != 0 ||
          fread(&part, sizeof(part), 1, file) != 1 ||
          (part.p_type == PT_LOAD && (part.p_offset > (unsigned long)size ||
                                      part.p_filesz > (unsigned long)size - part.p_offset))) {
        why = "the file is truncated; copy or build it again";
      }
    }
  }
  fclose(file);
  return why;
#else
  (void)path;
  return NULL;
#endif
}

/* Opens the library at `path` and returns its table of functions, or null with a sentence in error.
 * `torch_version` is the host's, null without LibTorch: it decides which library is advised. The
 * library stays for the life of the process, since a graph may hold its objects. */
static inline const recoup_plugin_v1* recoup_open(const char* path, const char* torch_version,
                                                  char* error, size_t error_size) {
  static const char same[] = "build the plugin and the host from the same recoup";
  const char* advice = torch_version != NULL
                           ? "give the path of librecoup.so, built with this host's LibTorch"
                           : "give the path of librecoup_policy.so";
  union { /* ISO C has no cast from an object's address to a function's */
    void* address;
    recoup_entry function;
  } entry;
  const recoup_plugin_v1* plugin;
  void* library;
  const char* why;
  if (path == NULL || *path == '\0') {
    return recoup_load_fail(error, error_size, "recoup: no plugin was named; %s", advice);
  }
  why = recoup_broken_library(path);
  if (why != NULL) {
    return recoup_load_fail(error, error_size, "recoup: cannot load the plugin %s: %s", path, why);
  }
#ifdef RTLD_NODELETE
  library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
#else
  library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
#endif
  if (library == NULL) {
    why = dlerror();
    return recoup_load_fail(error, error_size, "recoup: cannot load the plugin %s: %s; %s", path,
                            why != NULL ? why : "unknown error", advice);
  }
  entry.address = dlsym(library, RECOUP_ENTRY_SYMBOL);
  if (entry.address == NULL) {
    return recoup_load_fail(error, error_size,
                            "recoup: %s is no recoup plugin for this host: it has no symbol %s; %s",
                            path, RECOUP_ENTRY_SYMBOL, same);
  }
#if defined(__GLIBC__) && defined(__USE_GNU) /* dladdr1(): C++, and C with _GNU_SOURCE */
  {
    Dl_info info;
    void* symbol = NULL;
    if (dladdr1(entry.address, &info, &symbol, RTLD_DL_SYMENT) != 0 && symbol != NULL &&
        ELF64_ST_TYPE(((const Elf64_Sym*)symbol)->st_info) != STT_FUNC) {
      return recoup_load_fail(error, error_size,
                              "recoup: %s is no recoup plugin: its symbol %s is data, not a "
                              "function; %s",
                              path, RECOUP_ENTRY_SYMBOL, advice);
    }
  }
#endif
  plugin = entry.function(RECOUP_ABI_VERSION);
  if (plugin == NULL) {
    return recoup_load_fail(error, error_size, "recoup: %s does not speak ABI version %u; %s", path,
                            RECOUP_ABI_VERSION, same);
  }
  if (plugin->struct_size < RECOUP_PLUGIN_V1_MIN || plugin->abi_version != RECOUP_ABI_VERSION) {
    return recoup_load_fail(error, error_size,
                            "recoup: %s speaks ABI version %u with a struct of %lu bytes, this "
                            "host version %u with at least %lu; %s",
                            path, (unsigned)plugin->abi_version, (unsigned long)plugin->struct_size,
                            RECOUP_ABI_VERSION, (unsigned long)RECOUP_PLUGIN_V1_MIN, same);
  }
  return plugin;
}

#ifdef __cplusplus
}
#endif

#endif /* RECOUP_LOAD_H_ */
