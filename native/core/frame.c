/* See frame.h. Every field is moved by itself at the offset that the packed structures give. */
#include "core/frame.h"

#include <assert.h>

#include "core/crc32c.h"

#define AT(type, field) offsetof(struct type, field)
#define CHECK_AT(type, field, offset)                                                              \
	static_assert(AT(type, field) == (offset), #field " of " #type " moved")

static_assert(sizeof(struct ffs_wire_header) == FFS_FRAME_HEADER_BYTES, "header size");
CHECK_AT(ffs_wire_header, magic, 0);
CHECK_AT(ffs_wire_header, version, 4);
CHECK_AT(ffs_wire_header, op, 5);
CHECK_AT(ffs_wire_header, status, 6);
CHECK_AT(ffs_wire_header, request_id, 8);
CHECK_AT(ffs_wire_header, blob, 16);
CHECK_AT(ffs_wire_header, trace_id, 24);
CHECK_AT(ffs_wire_header, deadline_ms, 32);
CHECK_AT(ffs_wire_header, chain_version, 36);
CHECK_AT(ffs_wire_header, grant_id, 40);
CHECK_AT(ffs_wire_header, priority, 44);
CHECK_AT(ffs_wire_header, flags, 45);
CHECK_AT(ffs_wire_header, count, 46);
CHECK_AT(ffs_wire_header, body_bytes, 48);
CHECK_AT(ffs_wire_header, payload_bytes, 52);
CHECK_AT(ffs_wire_header, reserved, 56);
CHECK_AT(ffs_wire_header, header_crc, 60);

static_assert(sizeof(struct ffs_wire_read_descriptor) == FFS_READ_DESCRIPTOR_BYTES, "size");
CHECK_AT(ffs_wire_read_descriptor, chunk, 8);
CHECK_AT(ffs_wire_read_descriptor, target, 12);
CHECK_AT(ffs_wire_read_descriptor, offset, 16);
CHECK_AT(ffs_wire_read_descriptor, length, 20);

static_assert(sizeof(struct ffs_wire_reply_entry) == FFS_REPLY_ENTRY_BYTES, "size");
CHECK_AT(ffs_wire_reply_entry, status, 2);
CHECK_AT(ffs_wire_reply_entry, bytes, 4);

static_assert(sizeof(struct ffs_wire_write_descriptor) == FFS_WRITE_DESCRIPTOR_BYTES, "size");
CHECK_AT(ffs_wire_write_descriptor, target, 4);
CHECK_AT(ffs_wire_write_descriptor, chain, 8);
CHECK_AT(ffs_wire_write_descriptor, length, 12);

static_assert(sizeof(struct ffs_wire_location) == FFS_LOCATION_BYTES, "size");
CHECK_AT(ffs_wire_location, file, 2);
CHECK_AT(ffs_wire_location, pin, 4);
CHECK_AT(ffs_wire_location, length, 8);
CHECK_AT(ffs_wire_location, reserved, 12);
CHECK_AT(ffs_wire_location, data_offset, 16);
CHECK_AT(ffs_wire_location, crc_offset, 24);

static_assert(sizeof(struct ffs_wire_qp_end) == FFS_QP_END_BYTES, "size");
CHECK_AT(ffs_wire_qp_end, gid_last, 8);
CHECK_AT(ffs_wire_qp_end, qpn, 16);
CHECK_AT(ffs_wire_qp_end, psn, 20);
CHECK_AT(ffs_wire_qp_end, lid, 24);
CHECK_AT(ffs_wire_qp_end, link, 26);
CHECK_AT(ffs_wire_qp_end, mtu, 27);
CHECK_AT(ffs_wire_qp_end, reads, 28);
CHECK_AT(ffs_wire_qp_end, requests, 30);
CHECK_AT(ffs_wire_qp_end, request_bytes, 32);

static_assert(sizeof(struct ffs_wire_cm_offer) == FFS_CM_OFFER_BYTES, "size");
CHECK_AT(ffs_wire_cm_offer, secret, 16);
CHECK_AT(ffs_wire_cm_offer, port, 32);

static_assert(sizeof(struct ffs_wire_remote) == FFS_REMOTE_BYTES, "size");
CHECK_AT(ffs_wire_remote, reply_address, 8);
CHECK_AT(ffs_wire_remote, data_address, 16);
CHECK_AT(ffs_wire_remote, body_key, 24);
CHECK_AT(ffs_wire_remote, reply_key, 28);
CHECK_AT(ffs_wire_remote, data_key, 32);
CHECK_AT(ffs_wire_remote, reply_bytes, 36);
CHECK_AT(ffs_wire_remote, frames, 40);

void ffs_header_pack(uint8_t out[FFS_FRAME_HEADER_BYTES], const struct ffs_header *header)
{
	ffs_store_u32(out + AT(ffs_wire_header, magic), FFS_MAGIC);
	out[AT(ffs_wire_header, version)] = FFS_VERSION;
	out[AT(ffs_wire_header, op)] = header->op;
	ffs_store_u16(out + AT(ffs_wire_header, status), header->status);
	ffs_store_u64(out + AT(ffs_wire_header, request_id), header->request_id);
	ffs_store_u64(out + AT(ffs_wire_header, blob), header->blob);
	ffs_store_u64(out + AT(ffs_wire_header, trace_id), header->trace_id);
	ffs_store_u32(out + AT(ffs_wire_header, deadline_ms), header->deadline_ms);
	ffs_store_u32(out + AT(ffs_wire_header, chain_version), header->chain_version);
	ffs_store_u32(out + AT(ffs_wire_header, grant_id), header->grant_id);
	out[AT(ffs_wire_header, priority)] = header->priority;
	out[AT(ffs_wire_header, flags)] = header->flags;
	ffs_store_u16(out + AT(ffs_wire_header, count), header->count);
	ffs_store_u32(out + AT(ffs_wire_header, body_bytes), header->body_bytes);
	ffs_store_u32(out + AT(ffs_wire_header, payload_bytes), header->payload_bytes);
	ffs_store_u32(out + AT(ffs_wire_header, reserved), 0);
	uint32_t crc = ffs_crc32c(0, out, AT(ffs_wire_header, header_crc));
	ffs_store_u32(out + AT(ffs_wire_header, header_crc), crc);
}

/* Magic and version come first: they tell a stranger from a damaged friend. */
static enum ffs_frame_fault check(const uint8_t in[FFS_FRAME_HEADER_BYTES])
{
	if (ffs_load_u32(in + AT(ffs_wire_header, magic)) != FFS_MAGIC)
		return FFS_FRAME_BAD_MAGIC;
	if (in[AT(ffs_wire_header, version)] != FFS_VERSION)
		return FFS_FRAME_BAD_VERSION;
	uint32_t crc = ffs_crc32c(0, in, AT(ffs_wire_header, header_crc));
	if (ffs_load_u32(in + AT(ffs_wire_header, header_crc)) != crc)
		return FFS_FRAME_BAD_CRC;
	if (ffs_load_u16(in + AT(ffs_wire_header, count)) > FFS_FRAME_DESCRIPTORS_MAX ||
	    ffs_load_u32(in + AT(ffs_wire_header, body_bytes)) > FFS_FRAME_BODY_BYTES_MAX ||
	    ffs_load_u32(in + AT(ffs_wire_header, payload_bytes)) > FFS_FRAME_PAYLOAD_BYTES_MAX)
		return FFS_FRAME_TOO_MANY;
	return FFS_FRAME_GOOD;
}

enum ffs_frame_fault ffs_header_unpack(struct ffs_header *header,
                                       const uint8_t in[FFS_FRAME_HEADER_BYTES])
{
	enum ffs_frame_fault fault = check(in);
	if (fault != FFS_FRAME_GOOD)
		return fault;
	header->op = in[AT(ffs_wire_header, op)];
	header->priority = in[AT(ffs_wire_header, priority)];
	header->flags = in[AT(ffs_wire_header, flags)];
	header->status = ffs_load_u16(in + AT(ffs_wire_header, status));
	header->count = ffs_load_u16(in + AT(ffs_wire_header, count));
	header->request_id = ffs_load_u64(in + AT(ffs_wire_header, request_id));
	header->blob = ffs_load_u64(in + AT(ffs_wire_header, blob));
	header->trace_id = ffs_load_u64(in + AT(ffs_wire_header, trace_id));
	header->deadline_ms = ffs_load_u32(in + AT(ffs_wire_header, deadline_ms));
	header->chain_version = ffs_load_u32(in + AT(ffs_wire_header, chain_version));
	header->grant_id = ffs_load_u32(in + AT(ffs_wire_header, grant_id));
	header->body_bytes = ffs_load_u32(in + AT(ffs_wire_header, body_bytes));
	header->payload_bytes = ffs_load_u32(in + AT(ffs_wire_header, payload_bytes));
	return FFS_FRAME_GOOD;
}

const char *ffs_frame_fault_text(enum ffs_frame_fault fault)
{
	static const char *const texts[] = {
		[FFS_FRAME_GOOD] = "no fault",
		[FFS_FRAME_BAD_MAGIC] = "frame header has the wrong magic",
		[FFS_FRAME_BAD_VERSION] = "frame header has an unknown version",
		[FFS_FRAME_BAD_CRC] = "frame header does not match its CRC",
		[FFS_FRAME_TOO_MANY] = "frame header announces more than a bound allows",
	};
	return texts[fault];
}

void ffs_read_descriptor_pack(uint8_t out[FFS_READ_DESCRIPTOR_BYTES],
                              const struct ffs_read_descriptor *descriptor)
{
	ffs_store_u64(out + AT(ffs_wire_read_descriptor, blob), descriptor->blob);
	ffs_store_u32(out + AT(ffs_wire_read_descriptor, chunk), descriptor->chunk);
	ffs_store_u32(out + AT(ffs_wire_read_descriptor, target), descriptor->target);
	ffs_store_u32(out + AT(ffs_wire_read_descriptor, offset), descriptor->offset);
	ffs_store_u32(out + AT(ffs_wire_read_descriptor, length), descriptor->length);
}

void ffs_read_descriptor_unpack(struct ffs_read_descriptor *descriptor,
                                const uint8_t in[FFS_READ_DESCRIPTOR_BYTES])
{
	descriptor->blob = ffs_load_u64(in + AT(ffs_wire_read_descriptor, blob));
	descriptor->chunk = ffs_load_u32(in + AT(ffs_wire_read_descriptor, chunk));
	descriptor->target = ffs_load_u32(in + AT(ffs_wire_read_descriptor, target));
	descriptor->offset = ffs_load_u32(in + AT(ffs_wire_read_descriptor, offset));
	descriptor->length = ffs_load_u32(in + AT(ffs_wire_read_descriptor, length));
}

void ffs_reply_entry_pack(uint8_t out[FFS_REPLY_ENTRY_BYTES], const struct ffs_reply_entry *entry)
{
	ffs_store_u16(out + AT(ffs_wire_reply_entry, index), entry->index);
	ffs_store_u16(out + AT(ffs_wire_reply_entry, status), entry->status);
	ffs_store_u32(out + AT(ffs_wire_reply_entry, bytes), entry->bytes);
}

void ffs_reply_entry_unpack(struct ffs_reply_entry *entry, const uint8_t in[FFS_REPLY_ENTRY_BYTES])
{
	entry->index = ffs_load_u16(in + AT(ffs_wire_reply_entry, index));
	entry->status = ffs_load_u16(in + AT(ffs_wire_reply_entry, status));
	entry->bytes = ffs_load_u32(in + AT(ffs_wire_reply_entry, bytes));
}

void ffs_write_descriptor_pack(uint8_t out[FFS_WRITE_DESCRIPTOR_BYTES],
                               const struct ffs_write_descriptor *descriptor)
{
	ffs_store_u32(out + AT(ffs_wire_write_descriptor, chunk), descriptor->chunk);
	ffs_store_u32(out + AT(ffs_wire_write_descriptor, target), descriptor->target);
	ffs_store_u32(out + AT(ffs_wire_write_descriptor, chain), descriptor->chain);
	ffs_store_u32(out + AT(ffs_wire_write_descriptor, length), descriptor->length);
}

void ffs_write_descriptor_unpack(struct ffs_write_descriptor *descriptor,
                                 const uint8_t in[FFS_WRITE_DESCRIPTOR_BYTES])
{
	descriptor->chunk = ffs_load_u32(in + AT(ffs_wire_write_descriptor, chunk));
	descriptor->target = ffs_load_u32(in + AT(ffs_wire_write_descriptor, target));
	descriptor->chain = ffs_load_u32(in + AT(ffs_wire_write_descriptor, chain));
	descriptor->length = ffs_load_u32(in + AT(ffs_wire_write_descriptor, length));
}

void ffs_location_pack(uint8_t out[FFS_LOCATION_BYTES], const struct ffs_location *location)
{
	ffs_store_u16(out + AT(ffs_wire_location, status), location->status);
	ffs_store_u16(out + AT(ffs_wire_location, file), location->file);
	ffs_store_u32(out + AT(ffs_wire_location, pin), location->pin);
	ffs_store_u32(out + AT(ffs_wire_location, length), location->length);
	ffs_store_u32(out + AT(ffs_wire_location, reserved), 0);
	ffs_store_u64(out + AT(ffs_wire_location, data_offset), location->data_offset);
	ffs_store_u64(out + AT(ffs_wire_location, crc_offset), location->crc_offset);
}

void ffs_location_unpack(struct ffs_location *location, const uint8_t in[FFS_LOCATION_BYTES])
{
	location->status = ffs_load_u16(in + AT(ffs_wire_location, status));
	location->file = ffs_load_u16(in + AT(ffs_wire_location, file));
	location->pin = ffs_load_u32(in + AT(ffs_wire_location, pin));
	location->length = ffs_load_u32(in + AT(ffs_wire_location, length));
	location->data_offset = ffs_load_u64(in + AT(ffs_wire_location, data_offset));
	location->crc_offset = ffs_load_u64(in + AT(ffs_wire_location, crc_offset));
}

void ffs_qp_end_pack(uint8_t out[FFS_QP_END_BYTES], const struct ffs_qp_end *end)
{
	memset(out, 0, FFS_QP_END_BYTES);
	ffs_store_u64(out + AT(ffs_wire_qp_end, gid_first), end->gid_first);
	ffs_store_u64(out + AT(ffs_wire_qp_end, gid_last), end->gid_last);
	ffs_store_u32(out + AT(ffs_wire_qp_end, qpn), end->qpn);
	ffs_store_u32(out + AT(ffs_wire_qp_end, psn), end->psn);
	ffs_store_u16(out + AT(ffs_wire_qp_end, lid), end->lid);
	out[AT(ffs_wire_qp_end, link)] = end->link;
	out[AT(ffs_wire_qp_end, mtu)] = end->mtu;
	out[AT(ffs_wire_qp_end, reads)] = end->reads;
	ffs_store_u16(out + AT(ffs_wire_qp_end, requests), end->requests);
	ffs_store_u32(out + AT(ffs_wire_qp_end, request_bytes), end->request_bytes);
}

bool ffs_qp_end_unpack(struct ffs_qp_end *end, const uint8_t in[FFS_QP_END_BYTES])
{
	uint8_t link = in[AT(ffs_wire_qp_end, link)], mtu = in[AT(ffs_wire_qp_end, mtu)];
	uint8_t reads = in[AT(ffs_wire_qp_end, reads)];
	/* Who serves no RDMA READ would keep one that was asked for waiting for ever. */
	if (link < FFS_LINK_INFINIBAND || link > FFS_LINK_IWARP || mtu < 1 || mtu > 5 || reads < 1)
		return false;
	end->gid_first = ffs_load_u64(in + AT(ffs_wire_qp_end, gid_first));
	end->gid_last = ffs_load_u64(in + AT(ffs_wire_qp_end, gid_last));
	end->qpn = ffs_load_u32(in + AT(ffs_wire_qp_end, qpn));
	end->psn = ffs_load_u32(in + AT(ffs_wire_qp_end, psn));
	end->lid = ffs_load_u16(in + AT(ffs_wire_qp_end, lid));
	end->link = link;
	end->mtu = mtu;
	end->reads = reads;
	end->requests = ffs_load_u16(in + AT(ffs_wire_qp_end, requests));
	end->request_bytes = ffs_load_u32(in + AT(ffs_wire_qp_end, request_bytes));
	return true;
}

void ffs_cm_offer_pack(uint8_t out[FFS_CM_OFFER_BYTES], const struct ffs_cm_offer *offer)
{
	memset(out, 0, FFS_CM_OFFER_BYTES);
	memcpy(out + AT(ffs_wire_cm_offer, address), offer->address, sizeof(offer->address));
	memcpy(out + AT(ffs_wire_cm_offer, secret), offer->secret, sizeof(offer->secret));
	ffs_store_u16(out + AT(ffs_wire_cm_offer, port), offer->port);
}

void ffs_cm_offer_unpack(struct ffs_cm_offer *offer, const uint8_t in[FFS_CM_OFFER_BYTES])
{
	memcpy(offer->address, in + AT(ffs_wire_cm_offer, address), sizeof(offer->address));
	memcpy(offer->secret, in + AT(ffs_wire_cm_offer, secret), sizeof(offer->secret));
	offer->port = ffs_load_u16(in + AT(ffs_wire_cm_offer, port));
}

void ffs_remote_pack(uint8_t out[FFS_REMOTE_BYTES], const struct ffs_remote *remote)
{
	ffs_store_u64(out + AT(ffs_wire_remote, body_address), remote->body_address);
	ffs_store_u64(out + AT(ffs_wire_remote, reply_address), remote->reply_address);
	ffs_store_u64(out + AT(ffs_wire_remote, data_address), remote->data_address);
	ffs_store_u32(out + AT(ffs_wire_remote, body_key), remote->body_key);
	ffs_store_u32(out + AT(ffs_wire_remote, reply_key), remote->reply_key);
	ffs_store_u32(out + AT(ffs_wire_remote, data_key), remote->data_key);
	ffs_store_u32(out + AT(ffs_wire_remote, reply_bytes), remote->reply_bytes);
	ffs_store_u32(out + AT(ffs_wire_remote, frames), remote->frames);
	ffs_store_u32(out + AT(ffs_wire_remote, reserved), 0);
}

void ffs_remote_unpack(struct ffs_remote *remote, const uint8_t in[FFS_REMOTE_BYTES])
{
	remote->body_address = ffs_load_u64(in + AT(ffs_wire_remote, body_address));
	remote->reply_address = ffs_load_u64(in + AT(ffs_wire_remote, reply_address));
	remote->data_address = ffs_load_u64(in + AT(ffs_wire_remote, data_address));
	remote->body_key = ffs_load_u32(in + AT(ffs_wire_remote, body_key));
	remote->reply_key = ffs_load_u32(in + AT(ffs_wire_remote, reply_key));
	remote->data_key = ffs_load_u32(in + AT(ffs_wire_remote, data_key));
	remote->reply_bytes = ffs_load_u32(in + AT(ffs_wire_remote, reply_bytes));
	remote->frames = ffs_load_u32(in + AT(ffs_wire_remote, frames));
}
