/*
 * The small functions of the module: checksums, frames by name, counters, constants, fault
 * injection. None is on the read path; tests and tools hold them against their Python twins.
 */
#include "reader/module.h"

#include <string.h>

#include "core/copy.h"
#include "core/crc32c.h"
#include "core/frame.h"
#include "core/limits.h"
#include "core/mix64.h"
#include "core/status.h"
#include "core/sys.h"
#include "reader/batch.h"

#define UNLOCKED_BYTES (64 << 10) /* from here on a checksum gives up the interpreter's lock */

/* ------------------------------------------------------------------------------------ checksums */

static PyObject *crc32c(PyObject *module, PyObject *args, PyObject *kwargs)
{
	(void)module;
	static char *names[] = {"data", "init", NULL};
	Py_buffer data;
	unsigned int init = 0;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|I:crc32c", names, &data, &init))
		return NULL;
	PyThreadState *thread = data.len >= UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
	uint32_t crc = ffs_crc32c(init, data.buf, (size_t)data.len);
	if (thread != NULL)
		PyEval_RestoreThread(thread);
	PyBuffer_Release(&data);
	return PyLong_FromUnsignedLong(crc);
}

/* CRCs of all blocks as they lie on the wire; `memory` takes four bytes each. */
static void fill_crcs(uint8_t *memory, const uint8_t *data, size_t length, uint64_t blob,
                      uint32_t chunk, uint32_t first_block)
{
	uint32_t crcs[64];
	while (length > 0) {
		size_t step = length < sizeof(crcs) / 4 * FFS_BLOCK_BYTES
		                  ? length
		                  : sizeof(crcs) / 4 * FFS_BLOCK_BYTES;
		uint32_t count = ffs_block_count((uint32_t)step);
		ffs_crc32c_blocks(data, step, blob, chunk, first_block, crcs);
		for (uint32_t i = 0; i < count; i++, memory += 4)
			ffs_store_u32(memory, crcs[i]);
		first_block += count;
		data += step, length -= step;
	}
}

static PyObject *block_crcs(PyObject *module, PyObject *args, PyObject *kwargs)
{
	(void)module;
	static char *names[] = {"data", "blob", "chunk", "first_block", NULL};
	Py_buffer data;
	unsigned long long blob;
	unsigned int chunk, first_block = 0;
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*KI|I:block_crcs", names, &data, &blob, &chunk,
	                                 &first_block))
		return NULL;
	PyObject *result = NULL;
	if (data.len > FFS_CHUNK_BYTES_MAX)
		PyErr_SetString(PyExc_ValueError, "data is larger than the largest chunk");
	else
		result =
			PyBytes_FromStringAndSize(NULL, 4 * (Py_ssize_t)ffs_block_count((uint32_t)data.len));
	if (result != NULL) {
		uint8_t *memory = (uint8_t *)PyBytes_AsString(result);
		PyThreadState *thread = data.len >= UNLOCKED_BYTES ? PyEval_SaveThread() : NULL;
		fill_crcs(memory, data.buf, (size_t)data.len, blob, chunk, first_block);
		if (thread != NULL)
			PyEval_RestoreThread(thread);
	}
	PyBuffer_Release(&data);
	return result;
}

static PyObject *block_seed(PyObject *module, PyObject *args)
{
	(void)module;
	unsigned long long blob;
	unsigned int chunk, block;
	if (!PyArg_ParseTuple(args, "KII:block_seed", &blob, &chunk, &block))
		return NULL;
	return PyLong_FromUnsignedLong(ffs_block_seed(blob, chunk, block));
}

static PyObject *crc_implementation(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return PyUnicode_FromString(ffs_crc32c_name());
}

static PyObject *force_crc(PyObject *module, PyObject *args)
{
	(void)module;
	const char *name;
	if (!PyArg_ParseTuple(args, "s:force_crc", &name))
		return NULL;
	if (!ffs_crc32c_force(name))
		return PyErr_Format(PyExc_ValueError, "this CPU has no CRC implementation %s", name);
	Py_RETURN_NONE;
}

/* --------------------------------------------------------------------------------------- frames */

struct field {
	const char *name;
	size_t offset;
	size_t size;
};

#define FIELD(type, name)                                                                          \
	{                                                                                              \
#name, offsetof(struct type, name), sizeof(((struct type *)NULL)->name)                    \
	}

static const struct field header_fields[] = {
	FIELD(ffs_header, op),
	FIELD(ffs_header, request_id),
	FIELD(ffs_header, status),
	FIELD(ffs_header, blob),
	FIELD(ffs_header, trace_id),
	FIELD(ffs_header, deadline_ms),
	FIELD(ffs_header, chain_version),
	FIELD(ffs_header, grant_id),
	FIELD(ffs_header, priority),
	FIELD(ffs_header, flags),
	FIELD(ffs_header, count),
	FIELD(ffs_header, body_bytes),
	FIELD(ffs_header, payload_bytes),
	{NULL, 0, 0},
};
static const struct field read_descriptor_fields[] = {
	FIELD(ffs_read_descriptor, blob),   FIELD(ffs_read_descriptor, chunk),
	FIELD(ffs_read_descriptor, target), FIELD(ffs_read_descriptor, offset),
	FIELD(ffs_read_descriptor, length), {NULL, 0, 0},
};
static const struct field reply_entry_fields[] = {
	FIELD(ffs_reply_entry, index),
	FIELD(ffs_reply_entry, status),
	FIELD(ffs_reply_entry, bytes),
	{NULL, 0, 0},
};
static const struct field write_descriptor_fields[] = {
	FIELD(ffs_write_descriptor, chunk),
	FIELD(ffs_write_descriptor, target),
	FIELD(ffs_write_descriptor, chain),
	FIELD(ffs_write_descriptor, length),
	{NULL, 0, 0},
};

static const struct field qp_end_fields[] = {
	FIELD(ffs_qp_end, gid_first),
	FIELD(ffs_qp_end, gid_last),
	FIELD(ffs_qp_end, qpn),
	FIELD(ffs_qp_end, psn),
	FIELD(ffs_qp_end, lid),
	FIELD(ffs_qp_end, link),
	FIELD(ffs_qp_end, mtu),
	FIELD(ffs_qp_end, reads),
	FIELD(ffs_qp_end, requests),
	FIELD(ffs_qp_end, request_bytes),
	{NULL, 0, 0},
};
static const struct field remote_fields[] = {
	FIELD(ffs_remote, body_address),
	FIELD(ffs_remote, reply_address),
	FIELD(ffs_remote, data_address),
	FIELD(ffs_remote, body_key),
	FIELD(ffs_remote, reply_key),
	FIELD(ffs_remote, data_key),
	FIELD(ffs_remote, reply_bytes),
	FIELD(ffs_remote, frames),
	{NULL, 0, 0},
};

/* Any of the structures that travel, in host order. */
union part {
	struct ffs_header header;
	struct ffs_read_descriptor read_descriptor;
	struct ffs_reply_entry reply_entry;
	struct ffs_write_descriptor write_descriptor;
	struct ffs_qp_end qp_end;
	struct ffs_remote remote;
	uint8_t bytes[sizeof(struct ffs_header)];
};

static int set_field(union part *part, const struct field *fields, PyObject *name, PyObject *value)
{
	while (fields->name != NULL && PyUnicode_CompareWithASCIIString(name, fields->name) != 0)
		fields++;
	if (fields->name == NULL) {
		PyErr_Format(PyExc_TypeError, "there is no field %U", name);
		return -1;
	}
	unsigned long long number = PyLong_AsUnsignedLongLong(value);
	if (number == (unsigned long long)-1 && PyErr_Occurred())
		return -1;
	if (fields->size < 8 && number >> (8 * fields->size) != 0) {
		PyErr_Format(PyExc_OverflowError, "%U is too large for its field", name);
		return -1;
	}
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	number <<= 64 - 8 * fields->size;
#endif
	memcpy(part->bytes + fields->offset, &number, fields->size);
	return 0;
}

static int fill_part(union part *part, const struct field *fields, PyObject *kwargs)
{
	Py_ssize_t at = 0;
	PyObject *name, *value;
	memset(part, 0, sizeof(*part));
	while (kwargs != NULL && PyDict_Next(kwargs, &at, &name, &value))
		if (set_field(part, fields, name, value) != 0)
			return -1;
	return 0;
}

static PyObject *show_part(const union part *part, const struct field *fields)
{
	PyObject *result = PyDict_New();
	for (; result != NULL && fields->name != NULL; fields++) {
		unsigned long long number = 0;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
		memcpy((uint8_t *)&number + 8 - fields->size, part->bytes + fields->offset, fields->size);
#else
		memcpy(&number, part->bytes + fields->offset, fields->size);
#endif
		PyObject *value = PyLong_FromUnsignedLongLong(number);
		if (value == NULL || PyDict_SetItemString(result, fields->name, value) != 0)
			Py_CLEAR(result);
		Py_XDECREF(value);
	}
	return result;
}

static PyObject *pack_header(PyObject *module, PyObject *args, PyObject *kwargs)
{
	(void)module;
	union part part;
	uint8_t wire[FFS_FRAME_HEADER_BYTES];
	if (!PyArg_ParseTuple(args, ":pack_header") || fill_part(&part, header_fields, kwargs) != 0)
		return NULL;
	ffs_header_pack(wire, &part.header);
	return PyBytes_FromStringAndSize((const char *)wire, sizeof(wire));
}

static PyObject *unpack_header(PyObject *module, PyObject *args)
{
	(void)module;
	Py_buffer data;
	union part part;
	if (!PyArg_ParseTuple(args, "y*:unpack_header", &data))
		return NULL;
	const char *fault = "a frame header has 64 bytes";
	memset(&part, 0, sizeof(part));
	if (data.len == FFS_FRAME_HEADER_BYTES) {
		enum ffs_frame_fault found = ffs_header_unpack(&part.header, data.buf);
		fault = found == FFS_FRAME_GOOD ? NULL : ffs_frame_fault_text(found);
	}
	PyBuffer_Release(&data);
	if (fault != NULL)
		return PyErr_Format(PyExc_ValueError, "%s", fault);
	return show_part(&part, header_fields);
}

/* A structure inside a frame's body, by its name. */
struct kind {
	const char *name;
	const struct field *fields;
	Py_ssize_t bytes;
};

static const struct kind kinds[] = {
	{"read_descriptor", read_descriptor_fields, FFS_READ_DESCRIPTOR_BYTES},
	{"reply_entry", reply_entry_fields, FFS_REPLY_ENTRY_BYTES},
	{"write_descriptor", write_descriptor_fields, FFS_WRITE_DESCRIPTOR_BYTES},
	{"qp_end", qp_end_fields, FFS_QP_END_BYTES},
	{"remote", remote_fields, FFS_REMOTE_BYTES},
	{NULL, NULL, 0},
};

static const struct kind *kind_by_name(const char *name)
{
	const struct kind *kind = kinds;
	while (kind->name != NULL && strcmp(kind->name, name) != 0)
		kind++;
	if (kind->name == NULL)
		PyErr_Format(PyExc_ValueError, "there is no structure %s", name);
	return kind->name == NULL ? NULL : kind;
}

static PyObject *pack_part(PyObject *module, PyObject *args, PyObject *kwargs)
{
	(void)module;
	const char *name;
	const struct kind *kind;
	union part part;
	uint8_t wire[FFS_REMOTE_BYTES];
	if (!PyArg_ParseTuple(args, "s:pack_part", &name) || (kind = kind_by_name(name)) == NULL ||
	    fill_part(&part, kind->fields, kwargs) != 0)
		return NULL;
	if (kind->fields == read_descriptor_fields)
		ffs_read_descriptor_pack(wire, &part.read_descriptor);
	else if (kind->fields == reply_entry_fields)
		ffs_reply_entry_pack(wire, &part.reply_entry);
	else if (kind->fields == qp_end_fields)
		ffs_qp_end_pack(wire, &part.qp_end);
	else if (kind->fields == remote_fields)
		ffs_remote_pack(wire, &part.remote);
	else
		ffs_write_descriptor_pack(wire, &part.write_descriptor);
	return PyBytes_FromStringAndSize((const char *)wire, kind->bytes);
}

static PyObject *unpack_part(PyObject *module, PyObject *args)
{
	(void)module;
	const char *name;
	Py_buffer data;
	union part part;
	PyObject *result = NULL;
	if (!PyArg_ParseTuple(args, "sy*:unpack_part", &name, &data))
		return NULL;
	const struct kind *kind = kind_by_name(name);
	memset(&part, 0, sizeof(part));
	if (kind != NULL && data.len != kind->bytes) {
		PyErr_Format(PyExc_ValueError, "%s has %zd bytes", name, kind->bytes);
	} else if (kind != NULL) {
		if (kind->fields == read_descriptor_fields)
			ffs_read_descriptor_unpack(&part.read_descriptor, data.buf);
		else if (kind->fields == reply_entry_fields)
			ffs_reply_entry_unpack(&part.reply_entry, data.buf);
		else if (kind->fields == qp_end_fields)
			(void)ffs_qp_end_unpack(&part.qp_end, data.buf);
		else if (kind->fields == remote_fields)
			ffs_remote_unpack(&part.remote, data.buf);
		else
			ffs_write_descriptor_unpack(&part.write_descriptor, data.buf);
		result = show_part(&part, kind->fields);
	}
	PyBuffer_Release(&data);
	return result;
}

/* ----------------------------------------------------------------------------------- numbers */

struct number {
	const char *name;
	unsigned long long value;
};

static PyObject *show_numbers(const struct number *numbers)
{
	PyObject *result = PyDict_New();
	for (; result != NULL && numbers->name != NULL; numbers++) {
		PyObject *value = PyLong_FromUnsignedLongLong(numbers->value);
		if (value == NULL || PyDict_SetItemString(result, numbers->name, value) != 0)
			Py_CLEAR(result);
		Py_XDECREF(value);
	}
	return result;
}

static PyObject *counters(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	struct ffs_counts counts;
	ffs_counters_read(&counts);
#define NUMBER(name) {#name, counts.name},
	const struct number numbers[] = {FFS_COUNTERS(NUMBER){"copied_bytes", ffs_copied_bytes()},
	                                 {NULL, 0}};
#undef NUMBER
	return show_numbers(numbers);
}

static const struct number limits[] = {
	{"BLOCK_BYTES", FFS_BLOCK_BYTES},
	{"FRAME_HEADER_BYTES", FFS_FRAME_HEADER_BYTES},
	{"FRAME_DESCRIPTORS_MAX", FFS_FRAME_DESCRIPTORS_MAX},
	{"FRAME_BODY_BYTES_MAX", FFS_FRAME_BODY_BYTES_MAX},
	{"FRAME_PAYLOAD_BYTES_MAX", FFS_FRAME_PAYLOAD_BYTES_MAX},
	{"CHUNK_BYTES_MAX", FFS_CHUNK_BYTES_MAX},
	{"CONNECTIONS_PER_DAEMON_MAX", FFS_CONNECTIONS_PER_DAEMON_MAX},
	{"HOPS_MAX", FFS_HOPS_MAX},
	{"LIST_CHUNKS_MAX", FFS_LIST_CHUNKS_MAX},
	{"SUSPECT_CHUNKS_MAX", FFS_SUSPECT_CHUNKS_MAX},
	{NULL, 0},
};

static const struct number statuses[] = {
	{"ProtocolError", FFS_ERR_PROTOCOL},
	{"UnavailableError", FFS_ERR_UNAVAILABLE},
	{"DeadlineError", FFS_ERR_DEADLINE},
	{"BusyError", FFS_ERR_BUSY},
	{"InvalidError", FFS_ERR_INVALID},
	{"NativeError", FFS_ERR_NATIVE},
	{"NoSpaceError", FFS_ERR_NO_SPACE},
	{"ChecksumError", FFS_ERR_CHECKSUM},
	{"ChunkMissingError", FFS_ERR_CHUNK_MISSING},
	{"ChunkLengthError", FFS_ERR_CHUNK_LENGTH},
	{"ChunkConflictError", FFS_ERR_CHUNK_CONFLICT},
	{"TargetStoppedError", FFS_ERR_TARGET_STOPPED},
	{"StaleChainError", FFS_ERR_STALE_CHAIN},
	{"StorageIOError", FFS_ERR_STORAGE_IO},
	{"ConnectionLostError", FFS_ERR_CONNECTION_LOST},
	{"StalledError", FFS_ERR_STALLED},
	{"CancelledOperationError", FFS_ERR_CANCELLED},
	{NULL, 0},
};

static PyObject *constants(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	PyObject *limit_values = show_numbers(limits), *status_values = show_numbers(statuses);
	PyObject *result = NULL;
	if (limit_values != NULL && status_values != NULL)
		result = Py_BuildValue("{sOsO}", "limits", limit_values, "status", status_values);
	Py_XDECREF(limit_values);
	Py_XDECREF(status_values);
	return result;
}

/* ------------------------------------------------------------------------------ fault injection */

static PyObject *fault_set(PyObject *module, PyObject *args)
{
	(void)module;
	const char *name;
	unsigned long long nth;
	int error;
	if (!PyArg_ParseTuple(args, "sKi:fault_set", &name, &nth, &error))
		return NULL;
	int call = ffs_sys_call_by_name(name);
	if (call < 0)
		return PyErr_Format(PyExc_ValueError, "there is no system call wrapper %s", name);
	ffs_sys_fault_set((enum ffs_sys_call)call, nth, error);
	Py_RETURN_NONE;
}

static PyObject *fault_counts(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	struct number numbers[FFS_SYS_CALL_COUNT + 1];
	for (int i = 0; i < FFS_SYS_CALL_COUNT; i++) {
		enum ffs_sys_call call = (enum ffs_sys_call)i;
		numbers[i] = (struct number){ffs_sys_call_name(call), ffs_sys_call_count(call)};
	}
	numbers[FFS_SYS_CALL_COUNT] = (struct number){NULL, 0};
	return show_numbers(numbers);
}

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

PyMethodDef ffs_tool_methods[] = {
	{"crc32c", KEYWORDS(crc32c), "CRC32C of `data`, continuing `init`."},
	{"block_crcs", KEYWORDS(block_crcs), "CRCs of each 4 KiB block, little-endian u32."},
	{"block_seed", block_seed, METH_VARARGS, "Start value of one block's CRC."},
	{"crc_implementation", crc_implementation, METH_NOARGS, "Name of the CRC code in use."},
	{"force_crc", force_crc, METH_VARARGS, "Use the CRC code of this name, or \"auto\"."},
	{"pack_header", KEYWORDS(pack_header), "A frame header with its CRC."},
	{"unpack_header", unpack_header, METH_VARARGS, "Check and take apart a frame header."},
	{"pack_part", KEYWORDS(pack_part), "A structure of a frame's body, by name."},
	{"unpack_part", unpack_part, METH_VARARGS, "Take such a structure apart."},
	{"counters", counters, METH_NOARGS, "Totals of this process since start or fork."},
	{"constants", constants, METH_NOARGS, "Limits and status codes as C has them."},
	{"fault_set", fault_set, METH_VARARGS, "Make the nth use of a system call fail (tests)."},
	{"fault_counts", fault_counts, METH_NOARGS, "Uses of each wrapper since fault_set."},
	{NULL, NULL, 0, NULL},
};
