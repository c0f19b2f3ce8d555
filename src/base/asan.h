/* AddressSanitizer's poison, where it is compiled in; nothing elsewhere. */
#ifndef BASE_ASAN_H
#define BASE_ASAN_H

#if defined(__SANITIZE_ADDRESS__)
#define BASE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BASE_ASAN 1
#endif
#endif

#ifdef BASE_ASAN
#include <sanitizer/asan_interface.h>
#define BASE_ASAN_POISON(memory, size) __asan_poison_memory_region(memory, size)
#define BASE_ASAN_UNPOISON(memory, size) __asan_unpoison_memory_region(memory, size)
#else
#define BASE_ASAN 0
#define BASE_ASAN_POISON(memory, size) ((void)(memory), (void)(size))
#define BASE_ASAN_UNPOISON(memory, size) ((void)(memory), (void)(size))
#endif

#endif
