/* A model of either family, and what every part of it computes. */
#ifndef MODEL_H
#define MODEL_H

#include "tensors.h"

typedef void (*on_output)(const char *name, const tensor *value);

/* One forward pass over input_ids [batch, seq]; tells every output by the names of the suite. */
void run_layers(const char *folder, const tensor *input_ids, on_output tell);

#endif
