/* See grants.h. What is granted is kept as ranges in order that do not overlap, one list for each
 * operation; a newer grant takes the place of older ones where both say something. */
#include "storage/grants.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/sys.h"
#include "storage/loop.h"

#define GRANT_VERSION 1u
#define OPERATIONS (FFS_MAY_READ | FFS_MAY_WRITE)

struct span {
	uint64_t first;
	uint64_t last;
	uint64_t expires_s;
};

struct list {
	struct span *spans;
	uint32_t count;
};

struct ffs_grants {
	uint8_t token_id[FFS_TOKEN_ID_BYTES];
	struct list reads;
	struct list writes;
};

/* As it stands in a GRANT. */
struct grant {
	uint8_t operations;
	uint32_t count;
	uint32_t key_id;
	uint64_t expires_s;
	const uint8_t *token_id;
	const uint8_t *ranges;
};

static uint64_t wall_s(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_REALTIME_COARSE, &now); /* asked for at each request */
	return (uint64_t)now.tv_sec;
}

struct ffs_grants *ffs_grants_new(const uint8_t token_id[FFS_TOKEN_ID_BYTES])
{
	struct ffs_grants *grants = ffs_sys_calloc(1, sizeof(*grants));
	if (grants != NULL)
		memcpy(grants->token_id, token_id, FFS_TOKEN_ID_BYTES);
	return grants;
}

static void replace(struct ffs_group *group, struct list *list, struct span *spans, uint32_t count)
{
	atomic_fetch_sub(&group->granted, list->count);
	atomic_fetch_add(&group->granted, count);
	free(list->spans);
	*list = (struct list){.spans = spans, .count = count};
}

void ffs_grants_free(struct ffs_group *group, struct ffs_grants *grants)
{
	if (grants == NULL)
		return;
	replace(group, &grants->reads, NULL, 0);
	replace(group, &grants->writes, NULL, 0);
	free(grants);
}

void ffs_group_set_grant_keys(struct ffs_group *group,
                              const struct ffs_grant_key keys[FFS_GRANT_KEYS])
{
	pthread_mutex_lock(&group->lock);
	memcpy(group->grant_keys, keys, sizeof(group->grant_keys));
	pthread_mutex_unlock(&group->lock);
}

/* ---------------------------------------------------------------------------- what is asked for */

/* The range that a blob is in, if that is not over; else NULL. */
static const struct span *find(const struct list *list, uint64_t blob, uint64_t now_s)
{
	uint32_t low = 0;
	uint32_t high = list->count;
	while (low < high) { /* the first that ends at the blob or behind it */
		uint32_t middle = low + (high - low) / 2;
		if (list->spans[middle].last < blob)
			low = middle + 1;
		else
			high = middle;
	}
	bool there =
		low < list->count && list->spans[low].first <= blob && now_s < list->spans[low].expires_s;
	return there ? &list->spans[low] : NULL;
}

bool ffs_grants_allow(const struct ffs_conn *conn, uint64_t blob, enum ffs_grant_operation what)
{
	const struct ffs_grants *grants = conn->grants;
	return find(what == FFS_MAY_WRITE ? &grants->writes : &grants->reads, blob, wall_s()) != NULL;
}

bool ffs_grants_allow_reads(const struct ffs_conn *conn, const struct ffs_request *request)
{
	const struct list *reads = &conn->grants->reads;
	uint64_t now_s = wall_s();
	struct span last = {.first = 1}; /* most blobs of a request are the one before or next to it */
	for (uint32_t i = 0; i < request->count; i++) {
		uint64_t blob =
			ffs_read_descriptor_blob(request->descriptors + (size_t)i * FFS_READ_DESCRIPTOR_BYTES);
		if (last.first <= blob && blob <= last.last)
			continue;
		const struct span *found = find(reads, blob, now_s);
		if (found == NULL)
			return false;
		last = *found;
	}
	return true;
}

/* ------------------------------------------------------------------------------ what is granted */

static struct span range_at(const struct grant *grant, uint32_t index)
{
	const uint8_t *at = grant->ranges + (size_t)index * FFS_GRANT_RANGE_BYTES;
	return (struct span){ffs_load_u64(at), ffs_load_u64(at + 8), grant->expires_s};
}

/* Add one behind the others, or let the last one go on. */
static void emit(struct span *out, uint32_t *count, struct span next)
{
	struct span *before = *count > 0 ? &out[*count - 1] : NULL;
	if (before != NULL && before->last + 1 == next.first && before->expires_s == next.expires_s)
		before->last = next.last;
	else
		out[(*count)++] = next;
}

/* The next of the older ranges that is not over. */
static bool next_old(const struct list *old, uint32_t *at, uint64_t now_s, struct span *found)
{
	while (*at < old->count) {
		*found = old->spans[(*at)++];
		if (now_s < found->expires_s)
			return true;
	}
	return false;
}

/* The grant's ranges, and what older ones say besides; `out` has room for all pieces. */
static uint32_t merge(struct span *out, const struct list *old, const struct grant *grant,
                      uint64_t now_s)
{
	uint32_t count = 0;
	uint32_t at = 0;
	struct span a;
	bool more = next_old(old, &at, now_s, &a);
	for (uint32_t i = 0; i < grant->count; i++) {
		struct span b = range_at(grant, i);
		while (more && a.first <= b.last) {
			if (a.first < b.first) {
				struct span before = {a.first, a.last < b.first ? a.last : b.first - 1,
				                      a.expires_s};
				emit(out, &count, before);
			}
			if (a.last > b.last) {
				a.first = b.last + 1;
				break;
			}
			more = next_old(old, &at, now_s, &a);
		}
		emit(out, &count, b);
	}
	while (more) {
		emit(out, &count, a);
		more = next_old(old, &at, now_s, &a);
	}
	return count;
}

static bool fits(const struct ffs_group *group, const struct list *list, uint32_t count)
{
	uint32_t others = atomic_load(&group->granted) - list->count;
	return count <= FFS_GRANTED_PER_CONNECTION_MAX && others + count <= FFS_GRANTED_PER_DAEMON_MAX;
}

/* At a bound all that was known goes: the client is refused, and shows what it needs again. */
static bool add(struct ffs_group *group, struct list *list, const struct grant *grant,
                uint64_t now_s)
{
	const struct list none = {0};
	size_t room = list->count + 2 * (size_t)grant->count;
	struct span *spans = ffs_sys_malloc(room * sizeof(*spans));
	if (spans == NULL)
		return false;
	uint32_t count = merge(spans, list, grant, now_s);
	if (!fits(group, list, count))
		count = merge(spans, &none, grant, now_s);
	replace(group, list, spans, count);
	return true;
}

/* ------------------------------------------------------------------------------------- a GRANT */

static bool find_key(struct ffs_group *group, uint32_t id, struct ffs_grant_key *found)
{
	bool there = false;
	pthread_mutex_lock(&group->lock);
	for (uint32_t i = 0; i < FFS_GRANT_KEYS && id != 0; i++) {
		if (group->grant_keys[i].id == id) {
			*found = group->grant_keys[i];
			there = true;
		}
	}
	pthread_mutex_unlock(&group->lock);
	return there;
}

/* Ranges in order, none empty, none touching what zeros are. */
static bool in_order(const struct grant *grant)
{
	uint64_t behind = 0;
	for (uint32_t i = 0; i < grant->count; i++) {
		struct span range = range_at(grant, i);
		if (range.first <= behind || range.last < range.first || range.last == UINT64_MAX)
			return false;
		behind = range.last;
	}
	return true;
}

static bool unpack(struct grant *grant, const struct ffs_request *request)
{
	const uint8_t *at = request->descriptors;
	*grant = (struct grant){
		.operations = at[1],
		.count = (uint32_t)at[2] | (uint32_t)at[3] << 8,
		.key_id = ffs_load_u32(at + 4),
		.expires_s = ffs_load_u64(at + 8),
		.token_id = at + 16,
		.ranges = at + FFS_GRANT_HEAD_BYTES,
	};
	return at[0] == GRANT_VERSION && grant->count == request->count &&
	       (grant->operations & ~OPERATIONS) == 0;
}

bool ffs_grant_makes_sense(const struct ffs_header *header)
{
	return header->count >= 1 && header->count <= FFS_GRANT_RANGES_MAX &&
	       header->payload_bytes == 0 && header->flags == 0 &&
	       header->body_bytes ==
	           FFS_GRANT_HEAD_BYTES + header->count * FFS_GRANT_RANGE_BYTES + FFS_MAC_BYTES;
}

bool ffs_grants_take(struct ffs_conn *conn, const struct ffs_request *request)
{
	struct ffs_group *group = conn->loop->group;
	uint8_t mac[FFS_MAC_BYTES];
	struct ffs_grant_key key;
	struct grant grant;
	size_t signed_bytes = FFS_GRANT_HEAD_BYTES + (size_t)request->count * FFS_GRANT_RANGE_BYTES;
	uint64_t now_s = wall_s();
	if (!unpack(&grant, request))
		return false;
	if (!find_key(group, grant.key_id, &key) || grant.expires_s <= now_s)
		return true;
	ffs_mac(mac, key.key, request->descriptors, signed_bytes);
	if (!ffs_mac_equal(mac, request->descriptors + signed_bytes) || !in_order(&grant) ||
	    memcmp(grant.token_id, conn->grants->token_id, FFS_TOKEN_ID_BYTES) != 0)
		return false;
	bool good = true;
	if ((grant.operations & FFS_MAY_READ) != 0)
		good = add(group, &conn->grants->reads, &grant, now_s);
	if (good && (grant.operations & FFS_MAY_WRITE) != 0)
		good = add(group, &conn->grants->writes, &grant, now_s);
	return good;
}
