/* Which string functions has the C library chosen for this processor? The pointers lead to the code that was
 * chosen when the program was loaded. Its vector compares and moves show which: with a 256-bit VEX prefix
 * (C5, then a byte whose bit 2 is L) or without. */
#include <stdio.h>
#include <string.h>

static int is_avx2(const unsigned char *code)
{
    for (int i = 0; i < 96; i++) {
        int vex = code[i] == 0xc5 && (code[i + 1] & 7) == 5;           /* VEX.256.66.0F */
        int load_or_store = code[i] == 0xc5 && (code[i + 1] & 7) == 6; /* VEX.256.F3.0F: vmovdqu */
        if ((vex || load_or_store) &&
            (code[i + 2] == 0x74 || code[i + 2] == 0x6f || code[i + 2] == 0x7f || code[i + 2] == 0xd7))
            return 1;
    }
    return 0;
}

int main(void)
{
    static const struct {
        const char *name;
        void *function;
    } functions[] = {
        {"strlen", (void *)strlen}, {"memchr", (void *)memchr}, {"strchr", (void *)strchr},
        {"memcpy", (void *)memcpy}, {"memset", (void *)memset},
    };
    char text[3000];
    for (unsigned i = 0; i < sizeof functions / sizeof *functions; i++)
        printf("strings: %s %s\n", functions[i].name,
               is_avx2(functions[i].function) ? "AVX2" : "other");
    memset(text, 'a', sizeof text);
    text[2999] = 0;
    printf("= strlen %zu\n", strlen(text));
    return 0;
}
