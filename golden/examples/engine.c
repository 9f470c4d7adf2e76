/* An engine for `refimpl conform run --cmd`, in C without any library: the levels op and layer, in double.
 *
 *     cc -O2 -o engine engine.c model.c operations.c tensors.c json.c -lm
 *     refimpl conform run --cmd ./engine
 *
 * One request a line on standard input, one answer a line on standard output; what it is asked and may answer is in
 * docs/conformance/protocol.md.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "operations.h"

static jmp_buf next_request;
static char why[400];
static int first_output;

/* What cannot be done is an answer too; see answer(). */
void give_up(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    longjmp(next_request, 1);
}

/* ---- answers are collected first: one that fails half way must not leave half a line */

static char *line;
static size_t length, room;

static void say(const char *format, ...) {
    va_list arguments;
    for (;;) {
        va_start(arguments, format);
        int wanted = vsnprintf(line + length, room - length, format, arguments);
        va_end(arguments);
        if (length + (size_t)wanted < room) {
            length += (size_t)wanted;
            return;
        }
        room = 2 * room + (size_t)wanted + 1;
        line = realloc(line, room);
        if (!line) abort();
    }
}

static void say_text(const char *text) {
    say("\"");
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20) {
            say("\\u%04x", *text);
        } else {
            say(*text == '"' || *text == '\\' ? "\\%c" : "%c", *text);
        }
    }
    say("\"");
}

static void say_output(const char *name, const tensor *value) {
    say(first_output ? "" : ", ");
    first_output = 0;
    say_text(name);
    say(": {\"dtype\": \"float64\", \"shape\": [");
    for (int i = 0; i < value->rank; i++) say(i ? ", %zu" : "%zu", value->shape[i]);
    say("], \"data\": [");
    for (size_t i = 0; i < value->count; i++) {
        if (!isfinite(value->data[i])) give_up("a result is not finite");
        say(i ? ",%.17g" : "%.17g", value->data[i]);
    }
    say("]}");
}

/* ---- requests */

static tensor *given(const json *request, const char *name, int needed) {
    json *place = json_get(json_get(request, "tensors"), name);
    if (!place) {
        if (needed) give_up("the tensor %s is missing", name);
        return NULL;
    }
    tensor *found = find_tensor(read_safetensors(json_text(place, "file", "")), json_text(place, "tensor", ""));
    if (!found) give_up("the file of %s does not have it", name);
    return found;
}

/* All tensors of a request, by argument. */
static tensor_file *all_given(const json *request) {
    json *tensors = json_get(request, "tensors");
    tensor_file *file = keep(sizeof *file);
    file->names = keep(tensors->count * sizeof *file->names);
    file->tensors = keep(tensors->count * sizeof *file->tensors);
    for (; file->count < tensors->count; file->count++) {
        file->names[file->count] = tensors->keys[file->count];
        file->tensors[file->count] = given(request, tensors->keys[file->count], 1);
    }
    return file;
}

static void tables(const json *request, const json *arguments) {
    tensor *cosines, *sines;
    json *rope = json_get(arguments, "rope_parameters");
    if (!rope) { /* the plain form: two numbers beside each other */
        char *text = keep(200);
        sprintf(text, "{\"rope_theta\": %.17g, \"partial_rotary_factor\": %.17g}",
                json_number(arguments, "rotary_emb_base", 10000), json_number(arguments, "rotary_pct", 1));
        rope = json_parse(text);
    }
    rotary_tables(rope, (int)json_number(arguments, "head_dim", 0), json_number(arguments, "max_position_embeddings", 2048),
                  given(request, "position_ids", 1), &cosines, &sines);
    say_output("cos", cosines);
    say_output("sin", sines);
}

static void compute(const char *operation, const json *request) {
    json *arguments = json_get(request, "arguments");
    if (!strcmp(operation, "layers")) {
        run_layers(json_text(request, "model", ""), given(request, "input_ids", 1), say_output);
    } else if (!strcmp(operation, "layer_norm")) {
        say_output("y", layer_norm(given(request, "x", 1), given(request, "weight", 1), given(request, "bias", 1),
                                   json_number(arguments, "eps", 1e-5)));
    } else if (!strcmp(operation, "linear")) {
        say_output("y", linear(given(request, "x", 1), given(request, "weight", 1), given(request, "bias", 0)));
    } else if (!strcmp(operation, "softmax")) {
        say_output("y", softmax(given(request, "x", 1)));
    } else if (!strcmp(operation, "activation")) {
        say_output("y", activation(given(request, "x", 1), json_text(arguments, "name", ""), all_given(request)));
    } else if (!strcmp(operation, "rotary")) {
        say_output("y", rotary(given(request, "x", 1), given(request, "cos", 1), given(request, "sin", 1)));
    } else if (!strcmp(operation, "rotary_tables")) {
        tables(request, arguments);
    } else if (!strcmp(operation, "attention")) {
        tensor *weights;
        say_output("context", attention(given(request, "query", 1), given(request, "key", 1), given(request, "value", 1),
                                        given(request, "mask", 1), json_number(arguments, "scale", 1), &weights));
        say_output("weights", weights);
    } else {
        give_up("the operation %s", operation);
    }
}

static void answer(const char *text) {
    static double id;
    length = 0;
    id = -1;
    if (setjmp(next_request)) {
        length = 0;
        say("{\"id\": %.0f, \"unsupported\": ", id);
        say_text(why);
        say("}");
        return;
    }
    json *request = json_parse(text);
    id = json_number(request, "id", -1);
    const char *operation = json_text(request, "operation", "");
    if (!strcmp(operation, "hello")) {
        say("{\"id\": %.0f, \"protocol\": 1, \"name\": \"example engine in C\", \"version\": \"1\", \"dtype\": \"float64\", ", id);
        say("\"has\": {\"levels\": [\"op\", \"layer\"]}, ");
        say("\"lacks\": {\"operations\": [\"quantize\", \"process_scores\"]}}");
        return;
    }
    say("{\"id\": %.0f, \"outputs\": {", id);
    first_output = 1;
    compute(operation, request);
    say("}}");
}

int main(void) {
    char *request = NULL;
    size_t size = 0, used = 0;
    say(""); /* makes the line */
    for (int c; (c = getchar()) != EOF;) {
        if (used + 2 > size && !(request = realloc(request, size = 2 * size + 1024))) abort();
        if (c != '\n') {
            request[used++] = (char)c;
            continue;
        }
        request[used] = 0;
        used = 0;
        answer(request);
        puts(line);
        fflush(stdout);
        forget();
    }
    free(request);
    free(line);
    return 0;
}
