/* Collectives between cards whose results every rank can tell beforehand, on a device's stream
 * between work that writes what is sent and work that reads what came. */
#ifndef TESTS_SUPPORT_CARD_COLLECTIVES_H
#define TESTS_SUPPORT_CARD_COLLECTIVES_H

#include "comm/cards.h"
#include "device/device.h"

/* Copies within the device, on its stream. */
typedef void card_move(void *to, const void *from, size_t bytes, void *stream);

/* Device memory for the rounds below. */
uint64_t card_collectives_bytes(const struct comm *comm);
/* So many rounds of each kind, the waits on the host among them. Joins and leaves. Returns how many
 * were wrong on this rank, after saying which. */
unsigned card_collectives_check(struct comm *comm, struct dev *dev, card_move *keep,
                                unsigned rounds, bool say);

#endif
