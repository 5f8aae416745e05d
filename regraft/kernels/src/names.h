/* The types of storage, and the names of what is compiled for one of them (STORE, TYPE) and one instruction set (ISA). */
#ifndef REGRAFT_NAMES_H
#define REGRAFT_NAMES_H

#define F32 1
#define BF16 2
#define F64 3

#define GLUE4(a, b, c, d) a##b##_##c##_##d
#define NAME4(a, b, c, d) GLUE4(a, b, c, d)
#define PUBLIC(name) NAME4(regraft_, name, TYPE, ISA)
#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#endif
