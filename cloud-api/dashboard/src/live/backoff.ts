/**
 * When to try again: full jitter (any time up to a bound that doubles), so that a clinic's screens do not all come
 * back in the same instant after a restart of the server.
 */
const FIRST_MS = 1_000;
const MOST_MS = 10_000;
const LEAST_MS = 200;

export class Backoff {
  private attempts = 0;

  constructor(private readonly random: () => number = Math.random) {}

  next(): number {
    const bound = Math.min(MOST_MS, FIRST_MS * 2 ** Math.min(this.attempts, 10));
    this.attempts++;
    return LEAST_MS + this.random() * (bound - LEAST_MS);
  }

  reset(): void {
    this.attempts = 0;
  }
}
