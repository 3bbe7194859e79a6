/*
 * Status of one operation or frame: the codes of ffs/errors.py, which a test compares by name.
 * 0 is done; what Python does about the others is its policy, never ours.
 */
#ifndef FFS_CORE_STATUS_H
#define FFS_CORE_STATUS_H

enum ffs_status {
	FFS_OK = 0,
	FFS_ERR_PROTOCOL = 2,
	FFS_ERR_UNAVAILABLE = 4,
	FFS_ERR_DEADLINE = 5,
	FFS_ERR_BUSY = 6,
	FFS_ERR_INVALID = 7,
	FFS_ERR_NATIVE = 8,
	FFS_ERR_TRANSPORT = 9,
	FFS_ERR_STALE_LAYOUT = 107,
	FFS_ERR_NO_SPACE = 200,
	FFS_ERR_CHECKSUM = 201,
	FFS_ERR_CHUNK_MISSING = 202,
	FFS_ERR_CHUNK_LENGTH = 203,
	FFS_ERR_CHUNK_CONFLICT = 204,
	FFS_ERR_TARGET_STOPPED = 205,
	FFS_ERR_STALE_CHAIN = 206,
	FFS_ERR_STORAGE_IO = 207,
	FFS_ERR_CONNECTION_LOST = 300,
	FFS_ERR_STALLED = 301,
	FFS_ERR_CANCELLED = 302,
	FFS_ERR_GRANT = 401,
	FFS_STATUS_PENDING = 0xFFFF, /* never on the wire: an operation that is still to be done */
};

#endif
