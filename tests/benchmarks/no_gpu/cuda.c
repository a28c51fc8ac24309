/* The part of the CUDA driver (libcuda.so.1) that torch and Triton ask while they compile; nothing runs.

Attributes are numbered as in cuda.h; the values are those of an H100's data sheet. */

typedef int Result;

Result cuInit(unsigned flags) { return 0; }
Result cuDriverGetVersion(int *version) { *version = 12060; return 0; }
Result cuGetErrorString(Result r, const char **text) { *text = "no driver"; return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 1: *value = 1024; break;     /* threads per block */
    case 10: *value = 32; break;      /* warp */
    case 12: *value = 65536; break;   /* registers per block */
    case 13: *value = 1980000; break; /* clock */
    case 16: *value = 132; break;     /* multiprocessors */
    case 36: *value = 2619000; break; /* memory clock */
    case 37: *value = 5120; break;    /* memory bus */
    case 75: *value = 9; break;       /* compute capability */
    case 97: *value = 232448; break;  /* shared memory per block, at most */
    default: *value = 0;
  }
  return 0;
}
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
Result cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
Result cuCtxSetCurrent(void *context) { return 0; }
Result cuCtxSetLimit(int limit, unsigned long value) { return 0; }
Result cuCtxGetLimit(unsigned long *value, int limit) { *value = 0; return 0; }
Result cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
Result cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
Result cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 0; return 0; }
Result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void *function, int config) { return 0; }
Result cuOccupancyMaxActiveClusters(int *n, void *function, void *config) { *n = 1; return 0; }
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuLaunchKernelEx(void) { return 0; }
Result cuLaunchKernel(void) { return 0; }
Result cuPointerGetAttribute(void) { return 0; }
