/* A TFLite delegate for tests: it computes a few operators right, until it is told not to.
 *
 * Built with `cc -shared -fPIC`; nothing is linked. The declarations below are our own and
 * hold only what is used here: the leading fields of the structures that a plug-in and the
 * runtime hand to each other. Their order is that of tensorflow/lite/core/c/common.h, where
 * new fields are added at the end only; it is the same in tflite-runtime 2.14 and in LiteRT 2.
 *
 * Options (all strings):
 *   mode            work | none | no_create | hang_create | no_prepare | crash_prepare | error
 *                   | abort | hang | gone; see tests/plugins.py
 *   ops             which operators to take, as "RESHAPE,ADD,LOGISTIC"; default "RESHAPE";
 *                   edgetpu-custom-op is always taken, and copies its input
 *   after           runs of the model before it misbehaves; default 0
 *   misbehave_file  it misbehaves only while this file exists
 *   message         what it says when it refuses
 *   device          as libedgetpu has it; ignored
 */

#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, FAILED = 1 };
enum { TYPE_FLOAT32 = 1, TYPE_UINT8 = 3, TYPE_INT8 = 9 };
enum { OP_ADD = 0, OP_LOGISTIC = 14, OP_RESHAPE = 22, OP_CUSTOM = 32 }; /* schema.fbs BuiltinOperator */
enum { ALLOW_DYNAMIC_TENSORS = 1 };

typedef struct {
  int size;
  int data[];
} Ints;

typedef struct {
  int type;
  void *data;
  Ints *dims;
  float scale;
  int32_t zero_point;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  void *delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  struct {
    int type;
    void *params;
  } quantization;
  void *sparsity;
  const Ints *dims_signature;
} Tensor;

typedef struct {
  Ints *inputs, *outputs, *intermediates, *temporaries;
  void *user_data, *builtin_data;
} Node;

typedef struct Context Context;
typedef struct Delegate Delegate;

typedef struct {
  void *(*init)(Context *, const char *, size_t);
  void (*free)(Context *, void *);
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  const char *(*profiling_string)(const Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *registration_external, *async_kernel;
  uint64_t inplace_operator;
} Registration;

struct Context {
  size_t tensors_size;
  int (*GetExecutionPlan)(Context *, Ints **);
  Tensor *tensors;
  void *impl;
  int (*ResizeTensor)(Context *, Tensor *, Ints *);
  void (*ReportError)(Context *, const char *, ...);
  int (*AddTensors)(Context *, int, int *);
  int (*GetNodeAndRegistration)(Context *, int, Node **, Registration **);
  int (*ReplaceNodeSubsetsWithDelegateKernels)(Context *, Registration, const Ints *, Delegate *);
};

struct Delegate {
  void *data;
  int (*Prepare)(Context *, Delegate *);
  int (*CopyFromBufferHandle)(Context *, Delegate *, int, Tensor *);
  int (*CopyToBufferHandle)(Context *, Delegate *, int, Tensor *);
  void (*FreeBufferHandle)(Context *, Delegate *, int *);
  int64_t flags;
  void *opaque_delegate_builder;
};

typedef struct {
  Delegate *delegate;
  Ints *nodes_to_replace, *input_tensors, *output_tensors;
} DelegateParams;

typedef struct {
  Delegate base; /* first, so that a pointer to it is a pointer to this */
  char mode[32], ops[128], misbehave_file[4096], message[1024];
  long after, runs;
  int first_node; /* runs of the model are counted where it runs; -1: nothing taken */
} Plugin;

typedef struct {
  Plugin *plugin;
  int op, node, input, second, output;
} Kernel;

static bool is_mode(const Plugin *plugin, const char *mode) {
  return strcmp(plugin->mode, mode) == 0;
}

static bool may_misbehave(const Plugin *plugin) {
  return !plugin->misbehave_file[0] || access(plugin->misbehave_file, F_OK) == 0;
}

static const char *text_of(const Plugin *plugin) {
  return plugin->message[0] ? plugin->message : "the test wants it so";
}

/* One node a kernel: tensors between the nodes of one kernel would have no memory. */

static void *kernel_init(Context *context, const char *buffer, size_t length) {
  const DelegateParams *params = (const DelegateParams *)buffer;
  Kernel *kernel = calloc(1, sizeof *kernel);
  Node *node;
  Registration *registration;
  (void)length;
  kernel->plugin = (Plugin *)params->delegate;
  kernel->node = params->nodes_to_replace->data[0];
  context->GetNodeAndRegistration(context, kernel->node, &node, &registration);
  kernel->op = registration->builtin_code;
  kernel->input = node->inputs->data[0];
  kernel->second = node->inputs->size > 1 ? node->inputs->data[1] : -1;
  kernel->output = node->outputs->data[0];
  return kernel;
}

static void kernel_free(Context *context, void *kernel) {
  (void)context;
  free(kernel);
}

static int kernel_prepare(Context *context, Node *node) {
  const Plugin *plugin = ((Kernel *)node->user_data)->plugin;
  if (is_mode(plugin, "no_prepare") && may_misbehave(plugin)) {
    context->ReportError(context, "%s", text_of(plugin));
    return FAILED;
  }
  return OK;
}

static long stored(const Tensor *tensor, size_t at) {
  return tensor->type == TYPE_INT8 ? ((int8_t *)tensor->data)[at] : ((uint8_t *)tensor->data)[at];
}

static void store(Tensor *tensor, size_t at, float real) {
  const long low = tensor->type == TYPE_INT8 ? -128 : 0;
  long value = lroundf(real / tensor->scale) + tensor->zero_point;
  value = value < low ? low : value > low + 255 ? low + 255 : value;
  if (tensor->type == TYPE_INT8) ((int8_t *)tensor->data)[at] = (int8_t)value;
  else ((uint8_t *)tensor->data)[at] = (uint8_t)value;
}

static int compute(Context *context, const Kernel *kernel) {
  const Tensor *input = &context->tensors[kernel->input];
  Tensor *output = &context->tensors[kernel->output];
  if (kernel->op == OP_RESHAPE || kernel->op == OP_CUSTOM) {
    if (output->data != input->data) memcpy(output->data, input->data, output->bytes);
  } else if (kernel->op == OP_ADD) {
    const Tensor *second = &context->tensors[kernel->second];
    for (size_t at = 0; at < output->bytes / sizeof(float); at++)
      ((float *)output->data)[at] = ((float *)input->data)[at] + ((float *)second->data)[at];
  } else if (output->type == TYPE_FLOAT32) {
    for (size_t at = 0; at < output->bytes / sizeof(float); at++)
      ((float *)output->data)[at] = 1.0f / (1.0f + expf(-((float *)input->data)[at]));
  } else {
    for (size_t at = 0; at < output->bytes; at++) {
      const float real = input->scale * (float)(stored(input, at) - input->zero_point);
      store(output, at, 1.0f / (1.0f + expf(-real)));
    }
  }
  return OK;
}

static int kernel_invoke(Context *context, Node *node) {
  const Kernel *kernel = node->user_data;
  Plugin *plugin = kernel->plugin;
  if (kernel->node == plugin->first_node && plugin->runs++ >= plugin->after &&
      may_misbehave(plugin)) {
    if (is_mode(plugin, "abort")) abort();
    while (is_mode(plugin, "hang")) pause();
    if (is_mode(plugin, "error") || is_mode(plugin, "gone")) {
      context->ReportError(context, "%s", text_of(plugin));
      return FAILED;
    }
  }
  return compute(context, kernel);
}

static bool is_wanted(const Plugin *plugin, const char *op) {
  const char *found = strstr(plugin->ops, op);
  return found != NULL && (found[strlen(op)] == ',' || found[strlen(op)] == '\0');
}

static bool can_take(Context *context, const Plugin *plugin, int index) {
  Node *node;
  Registration *registration;
  if (context->GetNodeAndRegistration(context, index, &node, &registration) != OK) return false;
  const Tensor *output = &context->tensors[node->outputs->data[0]];
  const bool is_8_bit = output->type == TYPE_INT8 || output->type == TYPE_UINT8;
  switch (registration->builtin_code) {
    case OP_RESHAPE:
      return is_wanted(plugin, "RESHAPE");
    case OP_CUSTOM:
      return registration->custom_name && !strcmp(registration->custom_name, "edgetpu-custom-op");
    case OP_LOGISTIC:
      return is_wanted(plugin, "LOGISTIC") && (is_8_bit || output->type == TYPE_FLOAT32);
    case OP_ADD: {
      const Tensor *first = &context->tensors[node->inputs->data[0]];
      const Tensor *second = &context->tensors[node->inputs->data[1]];
      return is_wanted(plugin, "ADD") && output->type == TYPE_FLOAT32 &&
             first->bytes == output->bytes && second->bytes == output->bytes;
    }
    default:
      return false;
  }
}

static int prepare(Context *context, Delegate *delegate) {
  Plugin *plugin = (Plugin *)delegate;
  const Registration kernel = {
      .init = kernel_init,
      .free = kernel_free,
      .prepare = kernel_prepare,
      .invoke = kernel_invoke,
      .custom_name = "TestKernel",
      .version = 1,
  };
  Ints *plan;
  if (is_mode(plugin, "crash_prepare") && may_misbehave(plugin)) raise(SIGSEGV);
  if (is_mode(plugin, "none")) return OK;
  if (context->GetExecutionPlan(context, &plan) != OK) return FAILED;
  const int count = plan->size;
  int *nodes = malloc((size_t)count * sizeof *nodes); /* replacing changes the plan */
  memcpy(nodes, plan->data, (size_t)count * sizeof *nodes);
  Ints *one = malloc(sizeof *one + sizeof(int));
  one->size = 1;
  for (int at = 0; at < count; at++) {
    if (!can_take(context, plugin, nodes[at])) continue;
    if (plugin->first_node < 0) plugin->first_node = nodes[at];
    one->data[0] = nodes[at];
    context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, one, delegate);
  }
  free(one);
  free(nodes);
  return OK;
}

static void set(char *field, size_t size, const char *value) { snprintf(field, size, "%s", value); }

Delegate *tflite_plugin_create_delegate(const char **keys, const char **values, size_t count,
                                        void (*report_error)(const char *)) {
  Plugin *plugin = calloc(1, sizeof *plugin);
  plugin->first_node = -1;
  set(plugin->mode, sizeof plugin->mode, "work");
  set(plugin->ops, sizeof plugin->ops, "RESHAPE");
  for (size_t at = 0; at < count; at++) {
    const char *key = keys[at], *value = values[at];
    if (!strcmp(key, "mode")) set(plugin->mode, sizeof plugin->mode, value);
    else if (!strcmp(key, "ops")) set(plugin->ops, sizeof plugin->ops, value);
    else if (!strcmp(key, "message")) set(plugin->message, sizeof plugin->message, value);
    else if (!strcmp(key, "after")) plugin->after = strtol(value, NULL, 10);
    else if (!strcmp(key, "misbehave_file"))
      set(plugin->misbehave_file, sizeof plugin->misbehave_file, value);
    else if (strcmp(key, "device")) {
      char text[256];
      snprintf(text, sizeof text, "unknown option %s", key);
      report_error(text);
      free(plugin);
      return NULL;
    }
  }
  if ((is_mode(plugin, "no_create") || is_mode(plugin, "gone")) && may_misbehave(plugin)) {
    /* Silent where it is told to be, as libedgetpu is. */
    if (strcmp(plugin->message, "silent")) report_error(text_of(plugin));
    free(plugin);
    return NULL;
  }
  while (is_mode(plugin, "hang_create") && may_misbehave(plugin)) pause();
  plugin->base.Prepare = prepare;
  plugin->base.flags = ALLOW_DYNAMIC_TENSORS;
  return &plugin->base;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
  if (delegate == NULL) abort(); /* it was never created */
  free(delegate);
}
