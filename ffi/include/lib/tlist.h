/* Lists that know the type of their members: a descriptor says where in a member its link lies. */
#ifndef CLOVIS_INCLUDE_LIB_TLIST_H
#define CLOVIS_INCLUDE_LIB_TLIST_H

#include "lib/list.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_tlink {
	struct m0_list_link t_link;
};

struct m0_tl {
	struct m0_list tl_head;
};

struct m0_tl_descr {
	const char *td_name;
	size_t td_link_offset;
	size_t td_link_magic_offset;
	uint64_t td_link_magic;
	uint64_t td_head_magic;
	size_t td_container_size;
};

#ifdef __cplusplus
#define M0_TL_DESCR(name, type, link, magic_field, link_magic, head_magic) \
	{(name), offsetof(type, link), offsetof(type, magic_field), (link_magic), (head_magic), sizeof(type)}
#else
#define M0_TL_DESCR(name, type, link, magic_field, link_magic, head_magic) \
	{.td_name = (name), .td_link_offset = offsetof(type, link), .td_link_magic_offset = offsetof(type, magic_field), \
	 .td_link_magic = (link_magic), .td_head_magic = (head_magic), .td_container_size = sizeof(type)}
#endif

static inline struct m0_list_link *m0_tlink_of_(const struct m0_tl_descr *d, const void *member)
{
	return &((struct m0_tlink *)(void *)((char *)(uintptr_t)member + d->td_link_offset))->t_link;
}

static inline void *m0_tlink_member_(const struct m0_tl_descr *d, const struct m0_list_link *link)
{
	return (char *)(uintptr_t)link - d->td_link_offset;
}

static inline void m0_tlist_init(const struct m0_tl_descr *d, struct m0_tl *list)
{
	(void)d;
	m0_list_init(&list->tl_head);
}

static inline void m0_tlist_fini(const struct m0_tl_descr *d, struct m0_tl *list)
{
	(void)d;
	m0_list_fini(&list->tl_head);
}

static inline void m0_tlink_init(const struct m0_tl_descr *d, void *member)
{
	if (d->td_link_magic != 0)
		*(uint64_t *)(void *)((char *)member + d->td_link_magic_offset) = d->td_link_magic;
	m0_list_link_init(m0_tlink_of_(d, member));
}

static inline void m0_tlink_fini(const struct m0_tl_descr *d, void *member)
{
	m0_list_link_fini(m0_tlink_of_(d, member));
}

static inline bool m0_tlink_is_in(const struct m0_tl_descr *d, const void *member)
{
	return m0_list_link_is_in(m0_tlink_of_(d, member));
}

static inline bool m0_tlist_is_empty(const struct m0_tl_descr *d, const struct m0_tl *list)
{
	(void)d;
	return m0_list_is_empty(&list->tl_head);
}

static inline size_t m0_tlist_length(const struct m0_tl_descr *d, const struct m0_tl *list)
{
	(void)d;
	return m0_list_length(&list->tl_head);
}

static inline void *m0_tlist_head(const struct m0_tl_descr *d, const struct m0_tl *list)
{
	return m0_list_is_empty(&list->tl_head) ? NULL : m0_tlink_member_(d, list->tl_head.l_head.ll_next);
}

static inline void *m0_tlist_tail(const struct m0_tl_descr *d, const struct m0_tl *list)
{
	return m0_list_is_empty(&list->tl_head) ? NULL : m0_tlink_member_(d, list->tl_head.l_head.ll_prev);
}

static inline void *m0_tlist_next(const struct m0_tl_descr *d, const struct m0_tl *list, const void *member)
{
	const struct m0_list_link *next = m0_tlink_of_(d, member)->ll_next;

	return next == &list->tl_head.l_head ? NULL : m0_tlink_member_(d, next);
}

static inline void *m0_tlist_prev(const struct m0_tl_descr *d, const struct m0_tl *list, const void *member)
{
	const struct m0_list_link *prev = m0_tlink_of_(d, member)->ll_prev;

	return prev == &list->tl_head.l_head ? NULL : m0_tlink_member_(d, prev);
}

static inline void m0_tlist_add(const struct m0_tl_descr *d, struct m0_tl *list, void *member)
{
	m0_list_add(&list->tl_head, m0_tlink_of_(d, member));
}

static inline void m0_tlist_add_tail(const struct m0_tl_descr *d, struct m0_tl *list, void *member)
{
	m0_list_add_tail(&list->tl_head, m0_tlink_of_(d, member));
}

static inline void m0_tlist_del(const struct m0_tl_descr *d, void *member)
{
	m0_list_del(m0_tlink_of_(d, member));
}

static inline void *m0_tlist_pop(const struct m0_tl_descr *d, struct m0_tl *list)
{
	void *first = m0_tlist_head(d, list);

	if (first != NULL)
		m0_tlist_del(d, first);
	return first;
}

static inline void m0_tlist_add_after(const struct m0_tl_descr *d, void *member, void *added)
{
	m0_list_add_after(m0_tlink_of_(d, member), m0_tlink_of_(d, added));
}

static inline void m0_tlist_add_before(const struct m0_tl_descr *d, void *member, void *added)
{
	m0_list_add_before(m0_tlink_of_(d, member), m0_tlink_of_(d, added));
}

/* Out of the list it is in, to the head or the tail of this one. */
static inline void m0_tlist_move(const struct m0_tl_descr *d, struct m0_tl *list, void *member)
{
	m0_list_move(&list->tl_head, m0_tlink_of_(d, member));
}

static inline void m0_tlist_move_tail(const struct m0_tl_descr *d, struct m0_tl *list, void *member)
{
	m0_list_move_tail(&list->tl_head, m0_tlink_of_(d, member));
}

static inline bool m0_tlist_contains(const struct m0_tl_descr *d, const struct m0_tl *list, const void *member)
{
	return m0_list_contains(&list->tl_head, m0_tlink_of_(d, member));
}

static inline void m0_tlink_init_at(const struct m0_tl_descr *d, void *member, struct m0_tl *list)
{
	m0_tlink_init(d, member);
	m0_tlist_add(d, list, member);
}

static inline void m0_tlink_init_at_tail(const struct m0_tl_descr *d, void *member, struct m0_tl *list)
{
	m0_tlink_init(d, member);
	m0_tlist_add_tail(d, list, member);
}

static inline void m0_tlink_del_fini(const struct m0_tl_descr *d, void *member)
{
	m0_tlist_del(d, member);
	m0_tlink_fini(d, member);
}

#define M0_TL_DESCR_DECLARE(prefix, scope) scope const struct m0_tl_descr prefix##_tl
#define M0_TL_DESCR_DEFINE(prefix, name, scope, type, link, magic_field, link_magic, head_magic) \
	scope const struct m0_tl_descr prefix##_tl = M0_TL_DESCR(name, type, link, magic_field, link_magic, head_magic)

#define M0_TL_DECLARE(prefix, scope, type) \
	scope void prefix##_tlist_init(struct m0_tl *list); \
	scope void prefix##_tlist_fini(struct m0_tl *list); \
	scope void prefix##_tlink_init(type *member); \
	scope void prefix##_tlink_fini(type *member); \
	scope bool prefix##_tlink_is_in(const type *member); \
	scope bool prefix##_tlist_is_empty(const struct m0_tl *list); \
	scope size_t prefix##_tlist_length(const struct m0_tl *list); \
	scope type *prefix##_tlist_head(const struct m0_tl *list); \
	scope type *prefix##_tlist_tail(const struct m0_tl *list); \
	scope type *prefix##_tlist_next(const struct m0_tl *list, const type *member); \
	scope type *prefix##_tlist_prev(const struct m0_tl *list, const type *member); \
	scope void prefix##_tlist_add(struct m0_tl *list, type *member); \
	scope void prefix##_tlist_add_tail(struct m0_tl *list, type *member); \
	scope void prefix##_tlist_del(type *member); \
	scope type *prefix##_tlist_pop(struct m0_tl *list); \
	scope void prefix##_tlist_add_after(type *member, type *added); \
	scope void prefix##_tlist_add_before(type *member, type *added); \
	scope void prefix##_tlist_move(struct m0_tl *list, type *member); \
	scope void prefix##_tlist_move_tail(struct m0_tl *list, type *member); \
	scope bool prefix##_tlist_contains(const struct m0_tl *list, const type *member); \
	scope void prefix##_tlink_init_at(type *member, struct m0_tl *list); \
	scope void prefix##_tlink_init_at_tail(type *member, struct m0_tl *list); \
	scope void prefix##_tlink_del_fini(type *member)

#define M0_TL_DEFINE(prefix, scope, type) \
	M0_UNUSED scope void prefix##_tlist_init(struct m0_tl *list) { m0_tlist_init(&prefix##_tl, list); } \
	M0_UNUSED scope void prefix##_tlist_fini(struct m0_tl *list) { m0_tlist_fini(&prefix##_tl, list); } \
	M0_UNUSED scope void prefix##_tlink_init(type *member) { m0_tlink_init(&prefix##_tl, member); } \
	M0_UNUSED scope void prefix##_tlink_fini(type *member) { m0_tlink_fini(&prefix##_tl, member); } \
	M0_UNUSED scope bool prefix##_tlink_is_in(const type *member) { return m0_tlink_is_in(&prefix##_tl, member); } \
	M0_UNUSED scope bool prefix##_tlist_is_empty(const struct m0_tl *list) { return m0_tlist_is_empty(&prefix##_tl, list); } \
	M0_UNUSED scope size_t prefix##_tlist_length(const struct m0_tl *list) { return m0_tlist_length(&prefix##_tl, list); } \
	M0_UNUSED scope type *prefix##_tlist_head(const struct m0_tl *list) { return (type *)m0_tlist_head(&prefix##_tl, list); } \
	M0_UNUSED scope type *prefix##_tlist_tail(const struct m0_tl *list) { return (type *)m0_tlist_tail(&prefix##_tl, list); } \
	M0_UNUSED scope type *prefix##_tlist_next(const struct m0_tl *list, const type *member) \
	{ return (type *)m0_tlist_next(&prefix##_tl, list, member); } \
	M0_UNUSED scope type *prefix##_tlist_prev(const struct m0_tl *list, const type *member) \
	{ return (type *)m0_tlist_prev(&prefix##_tl, list, member); } \
	M0_UNUSED scope void prefix##_tlist_add(struct m0_tl *list, type *member) { m0_tlist_add(&prefix##_tl, list, member); } \
	M0_UNUSED scope void prefix##_tlist_add_tail(struct m0_tl *list, type *member) \
	{ m0_tlist_add_tail(&prefix##_tl, list, member); } \
	M0_UNUSED scope void prefix##_tlist_del(type *member) { m0_tlist_del(&prefix##_tl, member); } \
	M0_UNUSED scope type *prefix##_tlist_pop(struct m0_tl *list) { return (type *)m0_tlist_pop(&prefix##_tl, list); } \
	M0_UNUSED scope void prefix##_tlist_add_after(type *member, type *added) \
	{ m0_tlist_add_after(&prefix##_tl, member, added); } \
	M0_UNUSED scope void prefix##_tlist_add_before(type *member, type *added) \
	{ m0_tlist_add_before(&prefix##_tl, member, added); } \
	M0_UNUSED scope void prefix##_tlist_move(struct m0_tl *list, type *member) { m0_tlist_move(&prefix##_tl, list, member); } \
	M0_UNUSED scope void prefix##_tlist_move_tail(struct m0_tl *list, type *member) \
	{ m0_tlist_move_tail(&prefix##_tl, list, member); } \
	M0_UNUSED scope bool prefix##_tlist_contains(const struct m0_tl *list, const type *member) \
	{ return m0_tlist_contains(&prefix##_tl, list, member); } \
	M0_UNUSED scope void prefix##_tlink_init_at(type *member, struct m0_tl *list) \
	{ m0_tlink_init_at(&prefix##_tl, member, list); } \
	M0_UNUSED scope void prefix##_tlink_init_at_tail(type *member, struct m0_tl *list) \
	{ m0_tlink_init_at_tail(&prefix##_tl, member, list); } \
	M0_UNUSED scope void prefix##_tlink_del_fini(type *member) { m0_tlink_del_fini(&prefix##_tl, member); } \
	struct prefix##_needs_a_semicolon_

/* m0_tl_for(prefix, list, member) { ... } m0_tl_endfor; the body may delete `member`. The others take a descriptor. */
#define m0_tl_for(prefix, list, member) m0_tlist_for(&prefix##_tl, list, member)
#define m0_tl_endfor m0_tlist_endfor
#define m0_tlist_for(descr, list, member) \
	do { \
		void *m0_tl_next_; \
		for ((member) = M0_CAST_LIKE_(member, m0_tlist_head((descr), (list))); \
		     (member) != NULL && (m0_tl_next_ = m0_tlist_next((descr), (list), (member)), true); \
		     (member) = M0_CAST_LIKE_(member, m0_tl_next_))
#define m0_tlist_endfor \
	} while (0)

/* The first member `var` for which the condition holds, or NULL; whether there is one; whether it holds for each. */
#define m0_tl_find(prefix, var, list, ...) \
	(__extension__({ \
		__typeof__(prefix##_tlist_head(list)) var; \
		for (var = prefix##_tlist_head(list); var != NULL && !(__VA_ARGS__); var = prefix##_tlist_next((list), var)) \
			; \
		var; \
	}))
#define m0_tl_exists(prefix, var, list, ...) (m0_tl_find(prefix, var, list, __VA_ARGS__) != NULL)
#define m0_tl_forall(prefix, var, list, ...) (m0_tl_find(prefix, var, list, !(__VA_ARGS__)) == NULL)
#define m0_tl_teardown(prefix, list, member) \
	while (((member) = M0_CAST_LIKE_(member, m0_tlist_pop(&prefix##_tl, (list)))) != NULL)

#ifdef __cplusplus
}
#endif

#endif
