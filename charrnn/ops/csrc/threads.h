// Work shared out among threads, and memory for it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "flushed.h"

#define CHARRNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace charrnn {
namespace {

// GNU OpenMP's own entry, found by the caller in the copy that PyTorch runs on, so that its threads are the ones that work here.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

using Threads = int (*)();
struct OpenMP {
    Parallel parallel;
    Threads threads;  // how many run what `parallel` began: it may give fewer than were asked for
};

// run(so many threads), on each of at most `threads` threads, of which the caller's is one.
template <class Run> void on_threads(const OpenMP& pool, int64_t threads, const Run& run) {
    if (threads <= 1) {
        run(1);
    } else if (pool.parallel && pool.threads) {
        struct Data {
            const Run& run;
            Threads threads;
        } data{run, pool.threads};
        pool.parallel([](void* given) { static_cast<Data*>(given)->run(static_cast<Data*>(given)->threads()); }, &data, (unsigned)threads, 0);
    } else {
        std::vector<std::thread> helpers;
        for (int64_t i = 1; i < threads; ++i) helpers.emplace_back([&] { run(threads); });
        run(threads);
        for (auto& helper : helpers) helper.join();
    }
}

// work(0), …, work(count - 1), each once.
template <class Work> void share(const OpenMP& pool, int64_t threads, int64_t count, const Work& work) {
    std::atomic<int64_t> next{0};
    on_threads(pool, std::min(threads, count), [&](int64_t) {
        for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
    });
}

struct Free {
    void operator()(char* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, Free>;

Memory aligned(size_t bytes) {
    return Memory(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
}

}  // namespace
}  // namespace charrnn
