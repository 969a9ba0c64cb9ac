// A trained classifier reads handwritten digits: pictures and weights are the guest's, the device computes.
//
//   mlp
//
// digits.bin holds the weights and 450 pictures that the training never saw; train.py writes it.
// Exit status: 0 when at least 95 % are recognised, 1 when not or refused.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "nocopy.h"

enum { PIXELS = 64, HIDDEN = 64, DIGITS = 10, PICTURES = 450, SHOWN = 6, GOAL = 95 };

struct digits {
    float hidden_weight[PIXELS * HIDDEN], hidden_bias[HIDDEN];
    float output_weight[HIDDEN * DIGITS], output_bias[DIGITS];
    uint8_t pictures[PICTURES * PIXELS], labels[PICTURES];
};

static const union {
    unsigned char bytes[offsetof(struct digits, labels) + PICTURES];
    struct digits digits;
} file = {{
#embed "digits.bin"
}};

static int32_t predicted[PICTURES];

// All pictures at once: predicted = argmax(relu(pictures / 16 @ W1 + b1) @ W2 + b2).
static int32_t classify(nocopy_tape* tape) {
    // What lies between input and answer stays in device-only memory; each offset follows the one before.
    const nocopy_tensor x = nocopy_in_scratch(nocopy_2d(NULL, NOCOPY_F32, PICTURES, PIXELS), 0);
    const nocopy_tensor hidden =
        nocopy_in_scratch(nocopy_2d(NULL, NOCOPY_F32, PICTURES, HIDDEN), 4 * nocopy_elements(x));
    const nocopy_tensor logits = nocopy_in_scratch(nocopy_2d(NULL, NOCOPY_F32, PICTURES, DIGITS),
                                                   hidden.offset + 4 * nocopy_elements(hidden));

    nocopy_copy(tape, x, nocopy_2d(file.digits.pictures, NOCOPY_U8, PICTURES, PIXELS));
    nocopy_matmul(tape, hidden, x, nocopy_2d(file.digits.hidden_weight, NOCOPY_F32, PIXELS, HIDDEN),
                  1.0f / 16);
    nocopy_binary(tape, NOCOPY_BINARY_ADD, hidden, hidden,
                  nocopy_1d(file.digits.hidden_bias, NOCOPY_F32, HIDDEN));
    nocopy_unary(tape, NOCOPY_UNARY_RELU, hidden, hidden);
    nocopy_matmul(tape, logits, hidden, nocopy_2d(file.digits.output_weight, NOCOPY_F32, HIDDEN, DIGITS), 1);
    nocopy_binary(tape, NOCOPY_BINARY_ADD, logits, logits,
                  nocopy_1d(file.digits.output_bias, NOCOPY_F32, DIGITS));
    nocopy_argmax(tape, nocopy_1d(predicted, NOCOPY_I32, PICTURES), logits);
    return nocopy_submit_tape(tape);
}

static void show(const int* which, int count) {
    for (int y = 0; y < 8; y++) {
        for (int i = 0; i < count; i++) {
            for (int x = 0; x < 8; x++) {
                const int ink = file.digits.pictures[which[i] * PIXELS + y * 8 + x];
                printf("%c%c", " .:-=+*#@"[ink / 2], " .:-=+*#@"[ink / 2]);
            }
            printf("  ");
        }
        printf("\n");
    }
    for (int i = 0; i < count; i++)
        printf("read %d, is %d       ", (int)predicted[which[i]], file.digits.labels[which[i]]);
    printf("\n\n");
}

int main(void) {
    nocopy_record records[8];
    nocopy_tape tape = nocopy_tape_over(records, 8);
    const int32_t code = classify(&tape);
    if (code < 0) {
        char text[512];
        nocopy_error_text(&tape, text, sizeof text);
        fprintf(stderr, "mlp: error %d: %s\n", (int)code, text);
        return 1;
    }
    int right = 0, wrong[SHOWN], wrongs = 0;
    for (int i = 0; i < PICTURES; i++) {
        if (predicted[i] == file.digits.labels[i])
            right++;
        else if (wrongs < SHOWN)
            wrong[wrongs++] = i;
    }
    const int first[SHOWN] = {0, 1, 2, 3, 4, 5};
    show(first, SHOWN);
    if (wrongs) printf("It is fooled by these:\n\n");
    if (wrongs) show(wrong, wrongs);
    printf("accuracy %.4f on %d pictures it has never seen\n", (double)right / PICTURES, PICTURES);
    return 100 * right >= GOAL * PICTURES ? 0 : 1;
}
