/* A doubly linked list through links inside its members. */
#ifndef CLOVIS_INCLUDE_LIB_LIST_H
#define CLOVIS_INCLUDE_LIB_LIST_H

#include "lib/types.h"
#include "lib/assert.h"

#ifdef __cplusplus
extern "C" {
#endif

struct m0_list_link {
	struct m0_list_link *ll_next;
	struct m0_list_link *ll_prev;
};

/* The head stands in the ring as a link: `l_head.ll_next` is the first member. */
struct m0_list {
	struct m0_list_link l_head;
};

#define M0_LIST_HEAD_INIT(name) {{&(name).l_head, &(name).l_head}}

static inline void m0_list_init(struct m0_list *list)
{
	list->l_head.ll_next = list->l_head.ll_prev = &list->l_head;
}

static inline bool m0_list_is_empty(const struct m0_list *list)
{
	return list->l_head.ll_next == &list->l_head;
}

static inline void m0_list_fini(struct m0_list *list)
{
	M0_ASSERT(m0_list_is_empty(list));
}

static inline void m0_list_link_init(struct m0_list_link *link)
{
	link->ll_next = link->ll_prev = link;
}

static inline bool m0_list_link_is_in(const struct m0_list_link *link)
{
	return link->ll_next != link;
}

static inline void m0_list_link_fini(struct m0_list_link *link)
{
	M0_ASSERT(!m0_list_link_is_in(link));
}

static inline void m0_list_link_between_(struct m0_list_link *link, struct m0_list_link *before, struct m0_list_link *behind)
{
	link->ll_prev = before;
	link->ll_next = behind;
	before->ll_next = link;
	behind->ll_prev = link;
}

static inline void m0_list_add(struct m0_list *list, struct m0_list_link *link)
{
	m0_list_link_between_(link, &list->l_head, list->l_head.ll_next);
}

static inline void m0_list_add_tail(struct m0_list *list, struct m0_list_link *link)
{
	m0_list_link_between_(link, list->l_head.ll_prev, &list->l_head);
}

static inline void m0_list_add_after(struct m0_list_link *link, struct m0_list_link *added)
{
	m0_list_link_between_(added, link, link->ll_next);
}

static inline void m0_list_add_before(struct m0_list_link *link, struct m0_list_link *added)
{
	m0_list_link_between_(added, link->ll_prev, link);
}

static inline void m0_list_del(struct m0_list_link *link)
{
	link->ll_prev->ll_next = link->ll_next;
	link->ll_next->ll_prev = link->ll_prev;
	m0_list_link_init(link);
}

static inline void m0_list_move(struct m0_list *list, struct m0_list_link *link)
{
	m0_list_del(link);
	m0_list_add(list, link);
}

static inline void m0_list_move_tail(struct m0_list *list, struct m0_list_link *link)
{
	m0_list_del(link);
	m0_list_add_tail(list, link);
}

static inline struct m0_list_link *m0_list_first(const struct m0_list *list)
{
	return m0_list_is_empty(list) ? NULL : list->l_head.ll_next;
}

static inline bool m0_list_contains(const struct m0_list *list, const struct m0_list_link *link)
{
	const struct m0_list_link *at;

	for (at = list->l_head.ll_next; at != &list->l_head; at = at->ll_next)
		if (at == link)
			return true;
	return false;
}

static inline size_t m0_list_length(const struct m0_list *list)
{
	const struct m0_list_link *at;
	size_t length = 0;

	for (at = list->l_head.ll_next; at != &list->l_head; at = at->ll_next)
		++length;
	return length;
}

#define m0_list_entry(link, type, member) container_of(link, type, member)
#define m0_list_for_each(list, pos) \
	for ((pos) = (list)->l_head.ll_next; (pos) != &(list)->l_head; (pos) = (pos)->ll_next)
#define m0_list_for_each_safe(list, pos, next) \
	for ((pos) = (list)->l_head.ll_next, (next) = (pos)->ll_next; (pos) != &(list)->l_head; \
	     (pos) = (next), (next) = (pos)->ll_next)
#define m0_list_for_each_entry(list, pos, type, member) \
	for ((pos) = m0_list_entry((list)->l_head.ll_next, type, member); &(pos)->member != &(list)->l_head; \
	     (pos) = m0_list_entry((pos)->member.ll_next, type, member))

#ifdef __cplusplus
}
#endif

#endif
