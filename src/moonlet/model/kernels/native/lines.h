// Memory from the beginning of a cache line: a vector that lies in two lines takes twice as long to load.
#pragma once
#include <cstddef>
#include <new>
#include <vector>

constexpr std::align_val_t LINE{64};

template <class T>
struct Lines {
    using value_type = T;
    Lines() = default;
    template <class U>
    Lines(const Lines<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), LINE)); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, LINE); }
    bool operator==(const Lines&) const { return true; }
    bool operator!=(const Lines&) const { return false; }
};

using Floats = std::vector<float, Lines<float>>;
