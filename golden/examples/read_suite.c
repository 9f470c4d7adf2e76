/* A case of the suite read in C, without any library.
 *
 *     cc -O2 -o read_suite read_suite.c json.c tensors.c -lm && ./read_suite .. ops/layer-norm
 *
 * prints what is given and what is expected.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensors.h"

void give_up(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static const char *join(const char *folder, const char *name) {
    char *path = keep(strlen(folder) + strlen(name) + 2);
    sprintf(path, "%s/%s", folder, name);
    return path;
}

static void show(const char *word, const char *name, const tensor *shown) {
    if (!shown) give_up("%s is missing", name);
    printf("%s %s: [", word, name);
    for (int i = 0; i < shown->rank; i++) printf(i ? ", %zu" : "%zu", shown->shape[i]);
    printf("]:");
    for (size_t i = 0; i < shown->count && i < 6; i++) printf(" %.6g", shown->data[i]);
    puts(shown->count > 6 ? " ..." : "");
}

int main(int count, char **arguments) {
    if (count != 3) give_up("usage: read_suite FOLDER CASE");
    json *manifest = json_parse(read_file(join(arguments[1], "manifest.json"), NULL));
    json *cases = json_get(manifest, "cases");
    for (size_t i = 0; cases && i < cases->count; i++) {
        json *found = cases->items[i], *inputs = json_get(found, "inputs");
        if (strcmp(json_text(found, "id", ""), arguments[2])) continue;
        printf("%s - %s\n", arguments[2], json_text(found, "title", json_text(found, "operation", "")));
        if (!strcmp(json_text(found, "operation", ""), "tokenizer")) {
            printf("line %g of %s\n", json_number(inputs, "line", 0), json_text(inputs, "file", ""));
            return 0;
        }
        tensor_file *file = read_safetensors(join(arguments[1], json_text(inputs, "file", "")));
        json *given = json_get(inputs, "tensors"), *outputs = json_get(json_get(found, "expected"), "outputs");
        for (size_t j = 0; j < given->count; j++)
            show("given", given->keys[j], find_tensor(file, given->items[j]->text));
        for (size_t j = 0; outputs && j < outputs->count; j++) {
            const char *ids = json_text(outputs->items[j], "int64", "");
            show("expected", outputs->keys[j], find_tensor(file, json_text(outputs->items[j], "float64", ids)));
        }
        return 0;
    }
    give_up("no such case: %s", arguments[2]);
    return 1;
}
