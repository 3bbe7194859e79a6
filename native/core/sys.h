/*
 * Every system call of both modules goes through here, so that a test can make the Nth one fail;
 * so do the verbs of RDMA (rdma/calls.h).
 * (But for locks and eventfds, which cannot fail as they are used.)
 *
 * Off (always, outside tests) a wrapper costs one relaxed load. Armed, each use is counted, and the
 * chosen use of the chosen call returns failure with the chosen errno without entering the kernel.
 * For close() the descriptor is closed all the same, since Linux does so even when it reports an
 * error; poll and the like may be made to fail with EINTR as signals would. With errno 0 the chosen
 * use goes through, and moves one byte only if it is one that moves bytes.
 *
 * Semantics are those of the calls themselves: -1 and errno (NULL for memory).
 * Each module that links this has its own switch.
 */
#ifndef FFS_CORE_SYS_H
#define FFS_CORE_SYS_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* One line per wrapper: the enum and the names that Python uses come from this list. */
#define FFS_SYS_CALLS(X)                                                                           \
	X(ALLOC, "alloc")                                                                              \
	X(THREAD, "thread")                                                                            \
	X(RECVMSG, "recvmsg")                                                                          \
	X(SENDMSG, "sendmsg")                                                                          \
	X(SENDFILE, "sendfile")                                                                        \
	X(SETSOCKOPT, "setsockopt")                                                                    \
	X(SHUTDOWN, "shutdown")                                                                        \
	X(FCNTL, "fcntl")                                                                              \
	X(POLL, "poll")                                                                                \
	X(EPOLL_CREATE, "epoll_create")                                                                \
	X(EPOLL_CTL, "epoll_ctl")                                                                      \
	X(EPOLL_WAIT, "epoll_wait")                                                                    \
	X(EVENTFD, "eventfd")                                                                          \
	X(OPEN, "open")                                                                                \
	X(CLOSE, "close")                                                                              \
	X(PREAD, "pread")                                                                              \
	X(PREADV2, "preadv2")                                                                          \
	X(MMAP, "mmap")                                                                                \
	X(CACHESTAT, "cachestat")                                                                      \
	X(MINCORE, "mincore")                                                                          \
	X(URING_SETUP, "io_uring_setup")                                                               \
	X(URING_REGISTER, "io_uring_register")                                                         \
	X(URING_ENTER, "io_uring_enter")                                                               \
	X(URING_READ, "io_uring_read")                                                                 \
	X(PWRITEV, "pwritev")                                                                          \
	X(FDATASYNC, "fdatasync")                                                                      \
	X(FSYNC, "fsync")                                                                              \
	X(FALLOCATE, "fallocate")                                                                      \
	X(FTRUNCATE, "ftruncate")                                                                      \
	X(RENAME, "rename")                                                                            \
	X(FSTAT, "fstat")                                                                              \
	X(FLOCK, "flock")                                                                              \
	X(MKDIR, "mkdir")                                                                              \
	X(LSEEK, "lseek")                                                                              \
	X(SYNC_RANGE, "sync_file_range")                                                               \
	X(FADVISE, "fadvise")                                                                          \
	X(MADVISE, "madvise")                                                                          \
	X(LOCK, "lock")                                                                                \
	X(IBV_ALLOC_PD, "ibv_alloc_pd")                                                                \
	X(IBV_REG_MR, "ibv_reg_mr")                                                                    \
	X(IBV_CREATE_CHANNEL, "ibv_create_comp_channel")                                               \
	X(IBV_CREATE_CQ, "ibv_create_cq")                                                              \
	X(IBV_CREATE_SRQ, "ibv_create_srq")                                                            \
	X(IBV_CREATE_QP, "ibv_create_qp")                                                              \
	X(IBV_MODIFY_QP, "ibv_modify_qp")                                                              \
	X(IBV_ALLOC_MW, "ibv_alloc_mw")                                                                \
	X(IBV_POST_SEND, "ibv_post_send")                                                              \
	X(IBV_POST_RECV, "ibv_post_recv")                                                              \
	X(IBV_NOTIFY, "ibv_req_notify_cq")                                                             \
	X(IBV_POLL, "ibv_poll_cq")

#define FFS_SYS_ENUM(name, text) FFS_SYS_##name,
enum ffs_sys_call {
	FFS_SYS_CALLS(FFS_SYS_ENUM) FFS_SYS_CALL_COUNT,
	FFS_SYS_ANY = FFS_SYS_CALL_COUNT
};
#undef FFS_SYS_ENUM

extern atomic_bool ffs_sys_armed;

/* Fail the nth (1-based) use of `call` from now with errno `error`, make it short for error 0, or
 * have it hang until this is switched off for a negative one; nth 0 switches off. */
void ffs_sys_fault_set(enum ffs_sys_call call, uint64_t nth, int error);
/* The call named `name`, FFS_SYS_ANY for "*", -1 for an unknown one. */
int ffs_sys_call_by_name(const char *name);
const char *ffs_sys_call_name(enum ffs_sys_call call);
/* Uses of `call` since the last ffs_sys_fault_set that armed. */
uint64_t ffs_sys_call_count(enum ffs_sys_call call);

enum ffs_sys_fault {
	FFS_SYS_THROUGH = 0,
	FFS_SYS_FAILS, /* errno is set */
	FFS_SYS_SHORT, /* to be made with one byte */
};

/* Count one use while armed, and say what is to become of it. */
enum ffs_sys_fault ffs_sys_count(enum ffs_sys_call call);

static inline enum ffs_sys_fault ffs_sys_fault(enum ffs_sys_call call)
{
	if (__builtin_expect(atomic_load_explicit(&ffs_sys_armed, memory_order_relaxed), 0))
		return ffs_sys_count(call);
	return FFS_SYS_THROUGH;
}

static inline bool ffs_sys_fails(enum ffs_sys_call call)
{
	return ffs_sys_fault(call) == FFS_SYS_FAILS;
}

/* The first byte of some parts: what a short use moves. */
struct iovec ffs_sys_first_byte(const struct iovec *parts, size_t count);

/* --------------------------------------------------------------------------------------- memory */

static inline void *ffs_sys_calloc(size_t count, size_t size)
{
	return ffs_sys_fails(FFS_SYS_ALLOC) ? NULL : calloc(count, size);
}

/* For what is overwritten before it is read: pages that never arrive are never touched. */
static inline void *ffs_sys_malloc(size_t size)
{
	return ffs_sys_fails(FFS_SYS_ALLOC) ? NULL : malloc(size);
}

static inline void *ffs_sys_realloc(void *memory, size_t size)
{
	return ffs_sys_fails(FFS_SYS_ALLOC) ? NULL : realloc(memory, size);
}

static inline char *ffs_sys_strdup(const char *text)
{
	return ffs_sys_fails(FFS_SYS_ALLOC) ? NULL : strdup(text);
}

/* `alignment` a power of two; freed by free(). */
static inline void *ffs_sys_aligned_alloc(size_t alignment, size_t size)
{
	void *memory = NULL;
	if (ffs_sys_fails(FFS_SYS_ALLOC) || posix_memalign(&memory, alignment, size) != 0)
		return NULL;
	return memory;
}

/* Like pthread_create, an errno or 0. */
static inline int ffs_sys_thread(pthread_t *thread, void *(*run)(void *), void *argument)
{
	return ffs_sys_fails(FFS_SYS_THREAD) ? errno : pthread_create(thread, NULL, run, argument);
}

/* -------------------------------------------------------------------------------------- sockets */

static inline ssize_t ffs_sys_recvmsg(int fd, struct msghdr *message, int flags)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_RECVMSG);
	if (fault == FFS_SYS_THROUGH)
		return recvmsg(fd, message, flags);
	struct iovec byte = ffs_sys_first_byte(message->msg_iov, message->msg_iovlen);
	struct msghdr shortened = *message; /* what comes beside the byte comes all the same */
	shortened.msg_iov = &byte;
	shortened.msg_iovlen = 1;
	ssize_t got = fault == FFS_SYS_FAILS ? -1 : recvmsg(fd, &shortened, flags);
	message->msg_controllen = shortened.msg_controllen;
	message->msg_flags = shortened.msg_flags;
	return got;
}

static inline ssize_t ffs_sys_sendmsg(int fd, const struct msghdr *message, int flags)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_SENDMSG);
	if (fault == FFS_SYS_THROUGH)
		return sendmsg(fd, message, flags);
	struct iovec byte = ffs_sys_first_byte(message->msg_iov, message->msg_iovlen);
	struct msghdr shortened = *message;
	shortened.msg_iov = &byte;
	shortened.msg_iovlen = 1;
	return fault == FFS_SYS_FAILS ? -1 : sendmsg(fd, &shortened, flags);
}

static inline ssize_t ffs_sys_sendfile(int target_fd, int source_fd, off_t *offset, size_t count)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_SENDFILE);
	if (fault == FFS_SYS_SHORT)
		count = 1;
	return fault == FFS_SYS_FAILS ? -1 : sendfile(target_fd, source_fd, offset, count);
}

static inline int ffs_sys_setsockopt(int fd, int level, int name, const void *value,
                                     socklen_t length)
{
	return ffs_sys_fails(FFS_SYS_SETSOCKOPT) ? -1 : setsockopt(fd, level, name, value, length);
}

static inline int ffs_sys_shutdown(int fd, int how)
{
	return ffs_sys_fails(FFS_SYS_SHUTDOWN) ? -1 : shutdown(fd, how);
}

static inline int ffs_sys_set_blocking(int fd, bool blocking)
{
	if (ffs_sys_fails(FFS_SYS_FCNTL))
		return -1;
	int flags = fcntl(fd, F_GETFL);
	int wanted = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
	return flags < 0 ? -1 : fcntl(fd, F_SETFL, wanted);
}

static inline int ffs_sys_dup(int fd)
{
	return ffs_sys_fails(FFS_SYS_FCNTL) ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

static inline int ffs_sys_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	return ffs_sys_fails(FFS_SYS_POLL) ? -1 : poll(fds, count, timeout_ms);
}

static inline int ffs_sys_epoll_create(void)
{
	return ffs_sys_fails(FFS_SYS_EPOLL_CREATE) ? -1 : epoll_create1(EPOLL_CLOEXEC);
}

static inline int ffs_sys_epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
	return ffs_sys_fails(FFS_SYS_EPOLL_CTL) ? -1 : epoll_ctl(epoll_fd, operation, fd, event);
}

static inline int ffs_sys_epoll_wait(int epoll_fd, struct epoll_event *events, int events_max,
                                     int timeout_ms)
{
	return ffs_sys_fails(FFS_SYS_EPOLL_WAIT) ? -1
	                                         : epoll_wait(epoll_fd, events, events_max, timeout_ms);
}

static inline int ffs_sys_eventfd(unsigned int value)
{
	return ffs_sys_fails(FFS_SYS_EVENTFD) ? -1 : eventfd(value, EFD_CLOEXEC | EFD_NONBLOCK);
}

/* ---------------------------------------------------------------------------------------- files */

/* A link in the place of a file is not followed (ELOOP), but where the path is an operator's. */
static inline int ffs_sys_openat(int directory_fd, const char *path, int flags, mode_t mode)
{
	flags |= directory_fd == AT_FDCWD ? O_CLOEXEC : O_CLOEXEC | O_NOFOLLOW;
	return ffs_sys_fails(FFS_SYS_OPEN) ? -1 : openat(directory_fd, path, flags, mode);
}

static inline int ffs_sys_close(int fd)
{
	bool fails = ffs_sys_fails(FFS_SYS_CLOSE);
	int error = errno;
	int result = close(fd);
	if (!fails)
		return result;
	errno = error;
	return -1;
}

static inline ssize_t ffs_sys_pread(int fd, void *target, size_t count, off_t offset)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_PREAD);
	if (fault == FFS_SYS_SHORT)
		count = 1;
	return fault == FFS_SYS_FAILS ? -1 : pread(fd, target, count, offset);
}

/* What the page cache has of it: fewer bytes, or EAGAIN, where the disk would have to be waited
 * for. */
static inline ssize_t ffs_sys_pread_cached(int fd, void *target, size_t count, off_t offset)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_PREADV2);
	struct iovec part = {.iov_base = target, .iov_len = fault == FFS_SYS_SHORT ? 1 : count};
	return fault == FFS_SYS_FAILS ? -1 : preadv2(fd, &part, 1, offset, RWF_NOWAIT);
}

/* A shared read-only mapping, MAP_FAILED and errno if there is none. */
static inline void *ffs_sys_map_file(int fd, size_t length, uint64_t offset)
{
	return ffs_sys_fails(FFS_SYS_MMAP)
	           ? MAP_FAILED
	           : mmap(NULL, length, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
}

/* Address space with nothing in it, MAP_FAILED and errno without. */
static inline void *ffs_sys_reserve(size_t length)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	return ffs_sys_fails(FFS_SYS_MMAP) ? MAP_FAILED : mmap(NULL, length, PROT_NONE, flags, -1, 0);
}

/* A shared read-only mapping at a place that was reserved; 0 or -1. */
static inline int ffs_sys_map_file_at(void *place, int fd, size_t length, uint64_t offset)
{
	const int flags = MAP_SHARED | MAP_FIXED;
	if (ffs_sys_fails(FFS_SYS_MMAP))
		return -1;
	return mmap(place, length, PROT_READ, flags, fd, (off_t)offset) == MAP_FAILED ? -1 : 0;
}

static inline int ffs_sys_madvise(void *address, size_t length, int advice)
{
	return ffs_sys_fails(FFS_SYS_MADVISE) ? -1 : madvise(address, length, advice);
}

/* A lock of the open file: F_OFD_SETLK or F_OFD_GETLK. */
static inline int ffs_sys_lock(int fd, int command, struct flock *lock)
{
	return ffs_sys_fails(FFS_SYS_LOCK) ? -1 : fcntl(fd, command, lock);
}

/* Private memory by the page, MAP_FAILED and errno without. */
static inline void *ffs_sys_map_memory(size_t size)
{
	return ffs_sys_fails(FFS_SYS_MMAP)
	           ? MAP_FAILED
	           : mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static inline int ffs_sys_mincore(const void *address, size_t length, unsigned char *pages)
{
	return ffs_sys_fails(FFS_SYS_MINCORE) ? -1 : mincore((void *)(uintptr_t)address, length, pages);
}

/* How many pages of a part of a file (not an empty one) are cached. C libraries do not know it yet.
 */
static inline int ffs_sys_cachestat(int fd, uint64_t offset, uint64_t length, uint64_t *cached)
{
#ifdef SYS_cachestat
	const long number = SYS_cachestat;
#else
	const long number = 451; /* on every architecture */
#endif
	struct {
		uint64_t offset;
		uint64_t length;
	} part = {offset, length};
	struct {
		uint64_t cached, dirty, writeback, evicted, recently_evicted;
	} pages;
	if (ffs_sys_fails(FFS_SYS_CACHESTAT) || syscall(number, fd, &part, &pages, 0) != 0)
		return -1;
	*cached = pages.cached;
	return 0;
}

/* preadv2, with its flags. */
static inline ssize_t ffs_sys_preadv2(int fd, const struct iovec *parts, int count, off_t offset,
                                      int flags)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_PREADV2);
	if (fault == FFS_SYS_THROUGH)
		return preadv2(fd, parts, count, offset, flags);
	struct iovec byte = ffs_sys_first_byte(parts, (size_t)count);
	return fault == FFS_SYS_FAILS ? -1 : preadv2(fd, &byte, 1, offset, flags);
}

/* Ask the kernel to read ahead; an errno or 0. */
static inline int ffs_sys_will_need(int fd, off_t offset, off_t length)
{
	return ffs_sys_fails(FFS_SYS_FADVISE) ? errno
	                                      : posix_fadvise(fd, offset, length, POSIX_FADV_WILLNEED);
}

/* Ask the kernel to drop clean pages from its cache; an errno or 0. */
static inline int ffs_sys_not_needed(int fd, off_t offset, off_t length)
{
	return ffs_sys_fails(FFS_SYS_FADVISE) ? errno
	                                      : posix_fadvise(fd, offset, length, POSIX_FADV_DONTNEED);
}

static inline ssize_t ffs_sys_pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_PWRITEV);
	if (fault == FFS_SYS_THROUGH)
		return pwritev(fd, parts, count, offset);
	struct iovec byte = ffs_sys_first_byte(parts, (size_t)count);
	return fault == FFS_SYS_FAILS ? -1 : pwritev(fd, &byte, 1, offset);
}

static inline int ffs_sys_fdatasync(int fd)
{
	return ffs_sys_fails(FFS_SYS_FDATASYNC) ? -1 : fdatasync(fd);
}

static inline int ffs_sys_fsync(int fd)
{
	return ffs_sys_fails(FFS_SYS_FSYNC) ? -1 : fsync(fd);
}

static inline int ffs_sys_fallocate(int fd, int mode, off_t offset, off_t length)
{
	return ffs_sys_fails(FFS_SYS_FALLOCATE) ? -1 : fallocate(fd, mode, offset, length);
}

static inline int ffs_sys_ftruncate(int fd, off_t length)
{
	return ffs_sys_fails(FFS_SYS_FTRUNCATE) ? -1 : ftruncate(fd, length);
}

static inline int ffs_sys_renameat(int directory_fd, const char *source, const char *target)
{
	return ffs_sys_fails(FFS_SYS_RENAME) ? -1
	                                     : renameat(directory_fd, source, directory_fd, target);
}

static inline int ffs_sys_fstat(int fd, struct stat *result)
{
	return ffs_sys_fails(FFS_SYS_FSTAT) ? -1 : fstat(fd, result);
}

static inline off_t ffs_sys_lseek(int fd, off_t offset, int whence)
{
	return ffs_sys_fails(FFS_SYS_LSEEK) ? -1 : lseek(fd, offset, whence);
}

static inline int ffs_sys_flock(int fd, int operation)
{
	return ffs_sys_fails(FFS_SYS_FLOCK) ? -1 : flock(fd, operation);
}

static inline int ffs_sys_mkdir(const char *path, mode_t mode)
{
	return ffs_sys_fails(FFS_SYS_MKDIR) ? -1 : mkdir(path, mode);
}

static inline int ffs_sys_sync_file_range(int fd, off_t offset, off_t length, unsigned int flags)
{
	return ffs_sys_fails(FFS_SYS_SYNC_RANGE) ? -1 : sync_file_range(fd, offset, length, flags);
}

#endif
