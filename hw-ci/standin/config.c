/* What the device is and lacks: words of CLOVIS_STANDIN, separated by spaces or commas. An unknown word ends the process: a test
 * that asked for something must not pass without it. */
#include "standin.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

struct config config = {
	.device_count = 1,
	.has_windows = true,
	.has_srq = true,
	.has_extended = true,
	.has_gids = true,
	.is_active = true,
	.inline_bytes = 256,
	.vendor = 0xc105,
	.memlock_bytes = UINT64_MAX,
	.private_bytes = REQUEST_DATA,
};

static uint64_t fault_count;

bool is_faulty(enum fault_kind kind)
{
	return kind == config.fault && ++fault_count == config.fault_at;
}

static void refuse(const char *word)
{
	fprintf(stderr, "CLOVIS_STANDIN: unknown word %s\n", word);
	_Exit(97);
}

static void read_addresses(char *text, const char *word)
{
	char *rest = NULL;
	config.device_count = 0;
	for (char *one = strtok_r(text, "+", &rest); one; one = strtok_r(NULL, "+", &rest)) {
		struct in_addr address;
		if (config.device_count == DEVICES_MAX || inet_pton(AF_INET, one, &address) != 1)
			refuse(word);
		config.addresses[config.device_count++] = address.s_addr;
	}
}

static void read_fault(const char *text, const char *word)
{
	static const char *const names[] = { "none", "send", "read", "write", "bind", "invalidate", "receive" };
	char name[16];
	unsigned long at;
	if (sscanf(text, "%15[a-z]:%d:%lu", name, &config.fault_status, &at) != 3)
		refuse(word);
	config.fault_at = at;
	for (int kind = FAULT_SEND; kind <= FAULT_RECEIVE; kind++)
		if (strcmp(name, names[kind]) == 0)
			config.fault = (enum fault_kind)kind;
	if (config.fault == FAULT_NONE)
		refuse(word);
}

static void read_tamper(const char *text, const char *word)
{
	static const char *const kinds[] = { "none", "send", "read", "write" };
	static const char *const ways[] = { "flip", "cut", "splice" };
	char kind[16], how[16];
	if (sscanf(text, "%15[a-z]:%15[a-z]:%u", kind, how, &config.tamper_bytes) != 3)
		refuse(word);
	bool is_known = false;
	for (int index = FAULT_SEND; index <= FAULT_WRITE; index++)
		if (strcmp(kind, kinds[index]) == 0)
			config.tamper_kind = (enum fault_kind)index;
	for (int index = TAMPER_FLIP; index <= TAMPER_SPLICE; index++)
		if (strcmp(how, ways[index]) == 0) {
			config.tamper = (enum tamper_how)index;
			is_known = true;
		}
	if (config.tamper_kind == FAULT_NONE || !is_known)
		refuse(word);
}

static void read_word(char *word)
{
	char *value = strchr(word, '=');
	if (strcmp(word, "no-windows") == 0)
		config.has_windows = false;
	else if (strcmp(word, "no-srq") == 0)
		config.has_srq = false;
	else if (strcmp(word, "no-extended") == 0)
		config.has_extended = false;
	else if (strcmp(word, "gid0-only") == 0)
		config.has_gids = false;
	else if (strcmp(word, "port-down") == 0)
		config.is_active = false;
	else if (strcmp(word, "no-device") == 0)
		config.device_count = 0;
	else if (!value)
		refuse(word);
	else if (strncmp(word, "inline=", 7) == 0)
		config.inline_bytes = (uint32_t)strtoul(value + 1, NULL, 0);
	else if (strncmp(word, "vendor=", 7) == 0)
		config.vendor = (uint32_t)strtoul(value + 1, NULL, 0);
	else if (strncmp(word, "memlock=", 8) == 0)
		config.memlock_bytes = strtoull(value + 1, NULL, 0);
	else if (strncmp(word, "private=", 8) == 0)
		config.private_bytes = (int)strtol(value + 1, NULL, 0);
	else if (strncmp(word, "addresses=", 10) == 0)
		read_addresses(value + 1, word);
	else if (strncmp(word, "fault=", 6) == 0)
		read_fault(value + 1, word);
	else if (strncmp(word, "tamper=", 7) == 0)
		read_tamper(value + 1, word);
	else if (strncmp(word, "tap=", 4) == 0) {
		if (snprintf(config.tap, sizeof(config.tap), "%s", value + 1) >= (int)sizeof(config.tap))
			refuse(word);
	}
	else
		refuse(word);
}

static __attribute__((constructor)) void config_read(void)
{
	config.addresses[0] = htonl(INADDR_LOOPBACK);
	const char *given = getenv("CLOVIS_STANDIN");
	if (!given)
		return;
	char text[512];
	if (snprintf(text, sizeof(text), "%s", given) >= (int)sizeof(text))
		refuse("(too long)");
	char *rest = NULL;
	for (char *word = strtok_r(text, " ,", &rest); word; word = strtok_r(NULL, " ,", &rest))
		read_word(word);
}
