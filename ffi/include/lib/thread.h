/* Threads. Any thread may use the library; adopting one changes nothing and may be left out. */
#ifndef CLOVIS_INCLUDE_LIB_THREAD_H
#define CLOVIS_INCLUDE_LIB_THREAD_H

#include "lib/types.h"
#include "lib/semaphore.h"
#include <stdarg.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

struct m0_thread_tls {
	struct m0 *tls_m0_instance;
	uint64_t tls_opaque[7];
};

struct m0_thread {
	union {
		pthread_t h_id;
		uint64_t h_room;
	} t_h;
	int t_initrc;
	int t_state;
	int (*t_init)(void *);
	void (*t_func)(void *);
	void *t_arg;
	char t_namebuf[32];
	struct m0_thread_tls t_tls;
};

int m0_thread_start_(struct m0_thread *thread, int (*init)(void *), void (*func)(void *), void *arg, const char *name);

/* Runs `init` (may be NULL), and if that gives 0 `func`, in a new thread; returns what `init` gave, or why there is no thread. */
__attribute__((format(printf, 5, 6), unused)) static inline int
m0_thread_init(struct m0_thread *thread, int (*init)(void *), void (*func)(void *), void *arg, const char *format, ...)
{
	char name[32];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(name, sizeof name, format, arguments);
	va_end(arguments);
	return m0_thread_start_(thread, init, func, arg, name);
}

/* The same for functions that take a TYPE (a pointer). */
#define M0_THREAD_INIT(thread, TYPE, init, func, arg, ...) \
	(__extension__({ \
		int (*m0_init_)(TYPE) = (init); \
		void (*m0_func_)(TYPE) = (func); \
		TYPE m0_arg_ = (arg); \
		m0_thread_init((thread), (int (*)(void *))(void (*)(void))m0_init_, \
			       (void (*)(void *))(void (*)(void))m0_func_, (void *)m0_arg_, __VA_ARGS__); \
	}))
int m0_thread_join(struct m0_thread *thread);
void m0_thread_fini(struct m0_thread *thread);
/* For threads that the program made by itself: 0, and `thread` is filled in. */
int m0_thread_adopt(struct m0_thread *thread, struct m0 *instance);
void m0_thread_shun(void);
struct m0_thread_tls *m0_thread_tls(void);
int m0_thread_signal(struct m0_thread *thread, int signal);

#ifdef __cplusplus
}
#endif

#endif
