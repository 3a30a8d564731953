// Holds the precompiled LibTorch headers that other targets reuse (see CMakeLists.txt).
