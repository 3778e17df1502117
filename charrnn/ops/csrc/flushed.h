// Numbers too small for the exponent cost a hundred cycles each; while this lives they are 0, and the thread's own setting comes back.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace charrnn {

class Flushed {
  public:
#if defined(__x86_64__)
    Flushed() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~Flushed() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#elif defined(__aarch64__)
    Flushed() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" ::"r"(before_ | (1ull << 24)));
    }
    ~Flushed() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

  private:
    uint64_t before_;
#endif
};

}  // namespace charrnn
