/* The example on a PC. */

#include <inttypes.h>
#include <stdio.h>

int example(void);

void say(const char *text)
{
    fputs(text, stdout);
}

void say_number(const char *text, uint64_t number)
{
    printf("%s%" PRIu64 "\n", text, number);
}

int main(void)
{
    return example();
}
