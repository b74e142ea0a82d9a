// Fills one level's table. A level's file is: its simd.h, this header, and HEADWAY_TABLE(kernels_<level>).
#pragma once
#include "attention_kernel.h"
#include "dense_kernel.h"
#include "finish_kernel.h"
#include "integer_kernel.h"

#define HEADWAY_TABLE(name)                                                                                     \
  namespace headway {                                                                                           \
  extern const Kernels name;                                                                                    \
  const Kernels name = {dense_panel, dense,     dense_expand, quantise, integer,     integer_expand, rms_norm, \
                        add,         scale,     softcap,      rope,     glu,         layer_norm,     gelu,     \
                        finish,      argmax,    log_sum_exp,  divergence, kv_write,  attend,                   \
                        attend_merge, attend_finish, read};                                                    \
  }
