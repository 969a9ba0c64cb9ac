// A picture becomes a drawing: blur, ink the edges, resize. The guest owns the pixels, the device filters
// them.
//
//   image IN.ppm OUT.ppm [WIDTH]    binary PPM files, 8 bits a channel; WIDTH of the result, half of IN's
//   unless given
//
// A host that decodes other formats calls image_open and image_filter instead and reads and writes the pixels
// where they lie; src/nocopy/examples/image.py does. Exit status: 0 done, 1 failed, 2 usage.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "nocopy.h"

#define EXPORT(name) __attribute__((export_name(#name)))

enum { RADIUS = 3, TAPS = 2 * RADIUS + 1, BORDER = RADIUS + 1, MAX_SIDE = 32768 };

static struct {
    uint32_t width, height, out_width, out_height;
    uint8_t *pixels, *result;  // [height, width, 3] and [out_height, out_width, 3]
} image;

static float blur[3][TAPS];  // one kernel for each of red, green and blue
static const float luminance[3] = {0.299f, 0.587f, 0.114f};
static const float sobel[2][9] = {{-1, 0, 1, -2, 0, 2, -1, 0, 1}, {-1, -2, -1, 0, 0, 0, 1, 2, 1}};
static const float ink = -1.0f / 90;  // an edge of that gradient keeps 1/e of its light

static nocopy_record records[32];
static nocopy_tape tape;

// The next piece of scratch memory, which only the device sees.
static nocopy_tensor scratch(uint64_t* used, uint32_t channels, uint32_t height, uint32_t width) {
    nocopy_tensor t = nocopy_4d(NULL, NOCOPY_F32, 1, channels, height, width);
    t = nocopy_in_scratch(t, *used);
    *used += 4 * nocopy_elements(t);
    return t;
}

static nocopy_tensor window(nocopy_tensor t, uint32_t y, uint32_t height, uint32_t x, uint32_t width) {
    return nocopy_sliced(nocopy_sliced(t, 2, y, y + height, 1), 3, x, x + width, 1);
}

// canvas = pixels as f32, with the outermost ones repeated BORDER times on every side: nine pieces, of which
// eight repeat a row, a column or a corner by broadcasting.
static void frame(nocopy_tensor canvas, nocopy_tensor pixels, uint32_t height, uint32_t width) {
    const uint32_t to_y[] = {0, BORDER, BORDER + height}, to_x[] = {0, BORDER, BORDER + width};
    const uint32_t from_y[] = {0, 0, height - 1}, from_x[] = {0, 0, width - 1};
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < 3; j++) {
            const uint32_t rows = i == 1 ? height : 1, columns = j == 1 ? width : 1;
            nocopy_copy(&tape,
                        window(canvas, to_y[i], i == 1 ? height : BORDER, to_x[j], j == 1 ? width : BORDER),
                        window(pixels, from_y[i], rows, from_x[j], columns));
        }
    }
}

static void build(void) {
    const uint32_t w = image.width, h = image.height, wide = w + 2 * BORDER, high = h + 2 * BORDER;
    const nocopy_tensor pixels = nocopy_permuted(nocopy_4d(image.pixels, NOCOPY_U8, 1, h, w, 3), 0, 3, 1, 2);
    const nocopy_tensor result = nocopy_permuted(
        nocopy_4d(image.result, NOCOPY_U8, 1, image.out_height, image.out_width, 3), 0, 3, 1, 2);
    uint64_t used = 0;
    const nocopy_tensor canvas = scratch(&used, 3, high, wide);
    const nocopy_tensor half = scratch(&used, 3, high, w + 2), soft = scratch(&used, 3, h + 2, w + 2);
    const nocopy_tensor grey = scratch(&used, 1, h + 2, w + 2), slope = scratch(&used, 2, h, w);
    const nocopy_tensor edge = scratch(&used, 1, h, w);
    const nocopy_tensor drawing = window(soft, 1, h, 1, w);
    const nocopy_tensor small = scratch(&used, 3, image.out_height, image.out_width);
    const nocopy_tensor none = nocopy_none();

    tape = nocopy_tape_over(records, sizeof records / sizeof *records);
    frame(canvas, pixels, h, w);
    // A separable Gaussian, each channel on its own.
    nocopy_conv2d(&tape, half, canvas, nocopy_4d(blur, NOCOPY_F32, 3, 1, 1, TAPS), none, 1, 1, 0, 0, 1, 1);
    nocopy_conv2d(&tape, soft, half, nocopy_4d(blur, NOCOPY_F32, 3, 1, TAPS, 1), none, 1, 1, 0, 0, 1, 1);
    // edge = |gradient of the luminance|.
    nocopy_conv2d(&tape, grey, soft, nocopy_4d(luminance, NOCOPY_F32, 1, 3, 1, 1), none, 1, 1, 0, 0, 1, 1);
    nocopy_conv2d(&tape, slope, grey, nocopy_4d(sobel, NOCOPY_F32, 2, 1, 3, 3), none, 1, 1, 0, 0, 1, 1);
    nocopy_unary(&tape, NOCOPY_UNARY_SQUARE, slope, slope);
    nocopy_reduce(&tape, NOCOPY_REDUCE_SUM, nocopy_selected(edge, 1, 0), nocopy_permuted(slope, 0, 2, 3, 1));
    nocopy_unary(&tape, NOCOPY_UNARY_SQRT, edge, edge);
    // drawing = soft * exp(ink * edge), the same ink for all three channels.
    nocopy_binary(&tape, NOCOPY_BINARY_MUL, edge, edge, nocopy_0d(&ink, NOCOPY_F32));
    nocopy_unary(&tape, NOCOPY_UNARY_EXP, edge, edge);
    nocopy_binary(&tape, NOCOPY_BINARY_MUL, drawing, drawing, edge);
    nocopy_resize(&tape, small, drawing);
    nocopy_copy(&tape, result, small);
}

static void set_blur(void) {
    float sum = 0;
    for (int i = 0; i < TAPS; i++) sum += blur[0][i] = expf(-0.5f * (float)((i - RADIUS) * (i - RADIUS)));
    for (int c = 2; c >= 0; c--)
        for (int i = 0; i < TAPS; i++) blur[c][i] = blur[0][i] / sum;
}

// Have room for a picture and its drawing; returns where its pixels go, NULL if there is no memory for them.
EXPORT(image_open)
uint8_t* image_open(uint32_t width, uint32_t height, uint32_t out_width, uint32_t out_height) {
    const uint32_t sides[] = {width, height, out_width, out_height};
    for (int i = 0; i < 4; i++)
        if (sides[i] < 1 || sides[i] > MAX_SIDE) return NULL;
    free(image.pixels);
    free(image.result);
    image.width = width;
    image.height = height;
    image.out_width = out_width;
    image.out_height = out_height;
    image.pixels = (uint64_t)width * height > SIZE_MAX / 3 ? NULL : malloc((size_t)3 * width * height);
    image.result =
        (uint64_t)out_width * out_height > SIZE_MAX / 3 ? NULL : malloc((size_t)3 * out_width * out_height);
    return image.result ? image.pixels : NULL;
}

// Draw the picture; returns where the drawing is, NULL if that failed.
EXPORT(image_filter)
uint8_t* image_filter(void) {
    set_blur();
    build();
    return nocopy_submit_tape(&tape) < 0 ? NULL : image.result;
}

// Write why image_filter failed.
EXPORT(image_error)
int32_t image_error(char* text, uint32_t len) {
    return nocopy_error_text(&tape, text, len);
}

static int fail(const char* what, const char* name) {
    fprintf(stderr, "image: %s%s\n", what, name);
    return 1;
}

// Skips spaces and comments and reads a number of a PPM header; 0 if there is none.
static uint32_t number(FILE* file) {
    int c = fgetc(file);
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF) c = fgetc(file);
        c = fgetc(file);
    }
    uint32_t value = 0;
    for (; c >= '0' && c <= '9' && value <= MAX_SIDE; c = fgetc(file))
        value = 10 * value + (uint32_t)(c - '0');
    return value;
}

static int load(const char* name, uint32_t out_width) {
    FILE* file = fopen(name, "rb");
    if (!file) return fail("cannot open ", name);
    const int is_ppm = fgetc(file) == 'P' && fgetc(file) == '6';
    const uint32_t width = is_ppm ? number(file) : 0, height = number(file), most = number(file);
    if (width < 1 || height < 1 || width > MAX_SIDE || height > MAX_SIDE || most != 255)
        return fail("not a binary PPM with 8 bits a channel: ", name);
    if (!out_width) out_width = (width + 1) / 2;
    const double out_height = fmax(1, round((double)height * out_width / width));
    uint8_t* pixels =
        out_height > MAX_SIDE ? NULL : image_open(width, height, out_width, (uint32_t)out_height);
    if (!pixels) return fail("too large: ", name);
    const size_t bytes = (size_t)3 * width * height;
    if (fread(pixels, 1, bytes, file) != bytes) return fail("ends early: ", name);
    fclose(file);
    return 0;
}

static int save(const char* name) {
    const size_t bytes = (size_t)3 * image.out_width * image.out_height;
    FILE* file = fopen(name, "wb");
    if (!file) return fail("cannot write ", name);
    fprintf(file, "P6\n%u %u\n255\n", image.out_width, image.out_height);
    const size_t written = fwrite(image.result, 1, bytes, file);
    if (fclose(file) || written != bytes) return fail("cannot write all of ", name);
    return 0;
}

int main(int argc, char** argv) {
    char* end = "";
    const unsigned long width = argc > 3 ? strtoul(argv[3], &end, 10) : 0;
    if (argc < 3 || argc > 4 || *end || width > MAX_SIDE || (argc > 3 && !width)) {
        fprintf(stderr, "usage: image IN.ppm OUT.ppm [WIDTH]\n");
        return 2;
    }
    if (load(argv[1], (uint32_t)width)) return 1;
    if (!image_filter()) {
        char text[512];
        image_error(text, sizeof text);
        return fail(text, "");
    }
    return save(argv[2]);
}
