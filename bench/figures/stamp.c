// Prints the monotonic clock in ns, first of all. Without a C library, for what that does before main() is no part of
// a start: under a hypervisor, asking the processor for its caches alone takes glibc nearly a millisecond.
#if defined(__x86_64__)
enum { WRITE = 1, CLOCK_GETTIME = 228, EXIT = 60 };
static long call(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}
#elif defined(__aarch64__)
enum { WRITE = 64, CLOCK_GETTIME = 113, EXIT = 93 };
static long call(long number, long a, long b, long c) {
  register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
}
#else
#error "bench/figures/work.py goes on without"
#endif

void _start(void) {
  long now[2];
  char text[24], *at = text + sizeof text;
  call(CLOCK_GETTIME, 1, (long)now, 0);
  unsigned long ns = now[0] * 1000000000UL + now[1];
  *--at = '\n';
  do *--at = '0' + ns % 10; while (ns /= 10);
  call(WRITE, 1, (long)at, text + sizeof text - at);
  call(EXIT, 0, 0, 0);
}
