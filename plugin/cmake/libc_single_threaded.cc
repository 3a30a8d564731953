// glibc's flag for "one thread only so far", by which libstdc++ leaves out atomics. Code that is
// not position independent cannot read glibc's own in a shared library; ours says what is always
// right.
extern "C" {
extern char __libc_single_threaded __attribute__((visibility("hidden")));
char __libc_single_threaded = 0;
}
