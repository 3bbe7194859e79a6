/*
 * The Python face of the engine: what the binding's files share. Limited API 3.11.
 */
#ifndef FFS_READER_MODULE_H
#define FFS_READER_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "reader/connection.h"
#include "reader/device_memory.h"

struct ffs_module_state {
	PyObject *connection_type;
	PyObject *mapping_type;
	PyObject *device_memory_type;
};

struct ffs_connection_object {
	PyObject_HEAD PyObject *weak_references;
	struct ffs_conn conn;
};

/* connection_type.c: create the heap type; a new reference, NULL with an exception set. */
PyObject *ffs_connection_type_new(PyObject *module);

/* batch_calls.c: the calls that move bytes. */
extern PyMethodDef ffs_batch_methods[];

/* ask_calls.c: small requests beside the batches. */
extern PyMethodDef ffs_ask_methods[];

/* qp_calls.c: going over to RDMA. */
PyObject *ffs_region_type_new(PyObject *module);
extern PyMethodDef ffs_qp_methods[];

/* device_memory.c: memory of a GPU; NULL for an object that is none, without an exception. */
PyObject *ffs_device_memory_type_new(PyObject *module);
const struct ffs_device_memory *ffs_device_memory_of(const struct ffs_module_state *state,
                                                     PyObject *object);

/* mapped.c: memory that shows extent files. */
PyObject *ffs_mapping_type_new(PyObject *module);
extern PyMethodDef ffs_mapped_methods[];

/* ranges.c: from ranges to operations. */
extern PyMethodDef ffs_range_methods[];

/* samples.c: checksums of samples. */
extern PyMethodDef ffs_sample_methods[];

/* latency_calls.c: how long calls took. */
extern PyMethodDef ffs_latency_methods[];

/* tools.c: checksums, frames, counters, and what tests need. */
extern PyMethodDef ffs_tool_methods[];

#endif
