/*
 * The Python face of the storage engine: ffs/_storage.pyi says what each function promises.
 *
 * Only this file's includers know Python. The GIL is released around whatever can wait.
 */
#ifndef FFS_STORAGE_MODULE_H
#define FFS_STORAGE_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "storage/store.h"

struct ffs_storage_state {
	PyTypeObject *store_type;
	PyTypeObject *loop_type;
};

struct ffs_storage_state *ffs_storage_state(PyObject *module);

extern PyType_Spec ffs_store_spec;
extern PyType_Spec ffs_loop_spec;

/*
 * The store behind a ChunkStore object; NULL with an exception if it is closed or our parent's. To
 * be asked for after the arguments have been read: what reads them may run Python, which may close.
 */
struct ffs_store *ffs_py_store(PyObject *object);

/* Methods of ChunkStore that change or verify chunks: py_put.c. */
PyObject *ffs_py_put(PyObject *object, PyObject *args);
PyObject *ffs_py_put_many(PyObject *object, PyObject *args);
PyObject *ffs_py_replace(PyObject *object, PyObject *args);
PyObject *ffs_py_verify(PyObject *object, PyObject *args);

struct ffs_group;
/* DataLoop.stats(): py_loop_stats.c. */
PyObject *ffs_py_loop_stats(struct ffs_group *group);
/* DataLoop.latency(), DataLoop.slowest(), ChunkStore.latency(): py_latency.c. */
PyObject *ffs_py_loop_latency(struct ffs_group *group);
PyObject *ffs_py_loop_slowest(struct ffs_group *group);
PyObject *ffs_py_store_latency(struct ffs_store *store);

#endif
