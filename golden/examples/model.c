#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "operations.h"

typedef struct {
    int japanese, layers, heads, parallel;
    double eps, most;
    const char *act;
    json *rope;
    tensor_file *weights;
} model;

static on_output tell_output;

static char *name_of(const char *format, int layer, const char *part) {
    char *made = keep(strlen(format) + strlen(part) + 24);
    sprintf(made, format, layer, part);
    return made;
}

static char *join(const char *name, const char *end) {
    char *made = keep(strlen(name) + strlen(end) + 1);
    return strcat(strcpy(made, name), end);
}

static void tell(int layer, const char *part, const tensor *value) {
    tell_output(name_of(*part ? "layers.%d.%s" : "layers.%d%s", layer, part), value);
}

static tensor *weight(const model *m, const char *name, int needed) {
    char *key = keep(strlen(name) + 32);
    sprintf(key, "%s.%s", m->japanese ? "gpt_neox_japanese" : "gpt_neox", name);
    tensor *found = find_tensor(m->weights, key);
    if (!found && needed) give_up("%s is missing", key);
    return found;
}

static tensor *part(const model *m, int layer, const char *name, int needed) {
    return weight(m, name_of("layers.%d.%s", layer, name), needed);
}

/* ---- the config */

static void put(json *object, char *key, json *item) {
    size_t count = object->count;
    char **keys = keep((count + 1) * sizeof *keys);
    json **items = keep((count + 1) * sizeof *items);
    for (size_t i = 0; i < count; i++) keys[i] = object->keys[i], items[i] = object->items[i];
    keys[count] = key;
    items[count] = item;
    object->keys = keys;
    object->items = items;
    object->count++;
}

/* A setting that the object does not say itself, or (over) that goes before what it says. */
static void setting(json *rope, char *key, json *item, int over) {
    if (!item) return;
    for (size_t i = 0; i < rope->count; i++)
        if (!strcmp(rope->keys[i], key)) {
            if (over || rope->items[i]->kind == J_NULL) rope->items[i] = item;
            return;
        }
    put(rope, key, item);
}

/* docs/spec/rotary.md, "How the settings are written" */
static json *rope_of(const json *config, int japanese) {
    json *rope = json_get(config, "rope_scaling"), *share = keep(sizeof *share);
    if (!rope || !rope->count) rope = json_get(config, "rope_parameters");
    if (!rope) {
        rope = keep(sizeof *rope);
        rope->kind = J_OBJECT;
    }
    setting(rope, "rope_type", json_get(rope, "type"), 0);
    setting(rope, "rope_theta", json_get(config, "rope_theta"), 0);
    setting(rope, "partial_rotary_factor", json_get(config, "partial_rotary_factor"), 0);
    setting(rope, "original_max_position_embeddings", json_get(config, "original_max_position_embeddings"), 1);
    setting(rope, "rope_theta", json_get(config, "rotary_emb_base"), 1);
    setting(rope, "partial_rotary_factor", json_get(config, "rotary_pct"), 1);
    share->kind = J_NUMBER;
    share->number = japanese ? 1 : 0.25;
    setting(rope, "partial_rotary_factor", share, 0);
    return rope;
}

static model *load(const char *folder) {
    char *path = keep(strlen(folder) + 32);
    model *m = keep(sizeof *m);
    sprintf(path, "%s/config.json", folder);
    json *config = json_parse(read_file(path, NULL));
    m->japanese = !strcmp(json_text(config, "model_type", ""), "gpt_neox_japanese");
    m->layers = (int)json_number(config, "num_hidden_layers", 0);
    m->heads = (int)json_number(config, "num_attention_heads", 1);
    m->parallel = !m->japanese && json_number(config, "use_parallel_residual", 1) != 0;
    m->eps = json_number(config, "layer_norm_eps", 1e-5);
    m->most = json_number(config, "max_position_embeddings", 2048);
    m->act = json_text(config, "hidden_act", "gelu");
    m->rope = rope_of(config, m->japanese);
    sprintf(path, "%s/model.safetensors", folder);
    m->weights = read_safetensors(path);
    return m;
}

/* ---- the forward pass */

static tensor *sum(const tensor *a, const tensor *b) {
    tensor *made = tensor_new(a->rank, a->shape);
    for (size_t i = 0; i < a->count; i++) made->data[i] = a->data[i] + b->data[i % b->count];
    return made;
}

/* Columns of query_key_value: head by head, (head, [query, key, value], head_dim) -> [batch, heads, seq, head_dim]. */
static tensor *split(const tensor *qkv, int heads, int which) {
    size_t batch = qkv->shape[0], seq = qkv->shape[1], dim = qkv->shape[2] / (3 * (size_t)heads), at = 0;
    size_t shape[4] = {batch, (size_t)heads, seq, dim};
    tensor *made = tensor_new(4, shape);
    for (size_t b = 0; b < batch; b++)
        for (size_t h = 0; h < (size_t)heads; h++)
            for (size_t s = 0; s < seq; s++)
                for (size_t i = 0; i < dim; i++)
                    made->data[at++] = qkv->data[(b * seq + s) * qkv->shape[2] + (h * 3 + (size_t)which) * dim + i];
    return made;
}

static tensor *merge(const tensor *context) {
    size_t batch = context->shape[0], heads = context->shape[1], seq = context->shape[2], dim = context->shape[3];
    size_t shape[3] = {batch, seq, heads * dim}, at = 0;
    tensor *made = tensor_new(3, shape);
    for (size_t b = 0; b < batch; b++)
        for (size_t s = 0; s < seq; s++)
            for (size_t h = 0; h < heads; h++)
                for (size_t i = 0; i < dim; i++)
                    made->data[at++] = context->data[((b * heads + h) * seq + s) * dim + i];
    return made;
}

static tensor *rotated_part(const tensor *x, size_t width) {
    size_t shape[4] = {x->shape[0], x->shape[1], x->shape[2], width};
    tensor *made = tensor_new(4, shape);
    for (size_t i = 0; i < made->count; i++) made->data[i] = x->data[i / width * x->shape[3] + i % width];
    return made;
}

static tensor *dense(const model *m, int layer, const char *name, const tensor *x) {
    tensor *bias = part(m, layer, join(name, ".bias"), 0);
    tensor *y = linear(x, part(m, layer, join(name, ".weight"), 1), bias);
    tell(layer, name, y);
    return y;
}

static tensor *norm(const model *m, int layer, const char *name, const tensor *x) {
    tensor *y = layer_norm(x, part(m, layer, join(name, ".weight"), 1),
                           part(m, layer, join(name, ".bias"), 1), m->eps);
    tell(layer, name, y);
    return y;
}

static tensor *attend(const model *m, int layer, const tensor *x, const tensor *cosines, const tensor *sines) {
    tensor *qkv = dense(m, layer, "attention.query_key_value", x), *weights;
    size_t width = 2 * cosines->shape[2];
    tensor *query = rotary(split(qkv, m->heads, 0), cosines, sines);
    tensor *key = rotary(split(qkv, m->heads, 1), cosines, sines);
    tell(layer, "attention.rotary_query", rotated_part(query, width));
    tell(layer, "attention.rotary_key", rotated_part(key, width));
    double scale = 1 / sqrt((double)query->shape[3]);
    tensor *context = merge(attention(query, key, split(qkv, m->heads, 2), NULL, scale, &weights));
    tell(layer, "attention.context", context);
    tensor *y = dense(m, layer, "attention.dense", context);
    tell(layer, "attention", y);
    return y;
}

static tensor *mlp(const model *m, int layer, const tensor *x) {
    tensor *wide = activation(dense(m, layer, "mlp.dense_h_to_4h", x), m->act, NULL);
    tell(layer, "mlp.act", wide);
    tensor *y = dense(m, layer, "mlp.dense_4h_to_h", wide);
    tell(layer, "mlp", y);
    return y;
}

void run_layers(const char *folder, const tensor *input_ids, on_output tell_it) {
    model *m = load(folder);
    tell_output = tell_it;
    tensor *embedding = weight(m, "embed_in.weight", 1), *cosines, *sines;
    size_t hidden = embedding->shape[1], seq = input_ids->shape[1];
    size_t shape[3] = {input_ids->shape[0], seq, hidden}, positions_shape[2] = {1, seq};
    tensor *x = tensor_new(3, shape), *positions = tensor_new(2, positions_shape);
    for (size_t i = 0; i < input_ids->count; i++) {
        if (input_ids->data[i] < 0 || input_ids->data[i] >= (double)embedding->shape[0]) give_up("an id out of range");
        memcpy(x->data + i * hidden, embedding->data + (size_t)input_ids->data[i] * hidden, hidden * sizeof(double));
    }
    for (size_t i = 0; i < seq; i++) positions->data[i] = (double)i;
    tell_output("embed_in", x);
    rotary_tables(m->rope, (int)hidden / m->heads, m->most, positions, &cosines, &sines);
    for (int layer = 0; layer < m->layers; layer++) {
        tensor *attended = attend(m, layer, norm(m, layer, "input_layernorm", x), cosines, sines);
        /* The Japanese model has one bias for all of the attention, in the last layer alone. */
        tensor *bias = m->japanese ? part(m, layer, "attention.dense_bias", 0) : NULL;
        tensor *after = sum(x, bias ? sum(attended, bias) : attended);
        tensor *y = mlp(m, layer, norm(m, layer, "post_attention_layernorm", m->parallel ? x : after));
        x = sum(after, y);
        tell(layer, "", x);
    }
    x = layer_norm(x, weight(m, "final_layer_norm.weight", 1), weight(m, "final_layer_norm.bias", 1), m->eps);
    tell_output("final_layer_norm", x);
    tensor *head = find_tensor(m->weights, "embed_out.weight");
    tell_output("logits", linear(x, head ? head : embedding, NULL));
}
