/* A libcuda.so.1 without a GPU: it finds every function in Python, in tests/standin/driver.py.

   Whoever loads the driver asks cuGetProcAddress for all other functions. No header of CUDA or of
   Python is needed: the process that loads this is Python's and has the two functions used here. */

#include <stddef.h>
#include <stdint.h>

enum { SUCCESS = 0, NOT_FOUND = 500 };

extern int PyGILState_Ensure(void);
extern void PyGILState_Release(int);
extern int PyRun_SimpleString(const char *);

static void *(*address_of)(const char *name, int version);

void standin_register(void *(*function)(const char *, int)) { address_of = function; }

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    if (address_of == NULL) {
        int state = PyGILState_Ensure();
        PyRun_SimpleString("import standin.driver");
        PyGILState_Release(state);
    }
    *function = address_of == NULL ? NULL : address_of(name, version);
    if (status != NULL)
        *status = *function == NULL; /* CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND */
    return *function == NULL ? NOT_FOUND : SUCCESS;
}
