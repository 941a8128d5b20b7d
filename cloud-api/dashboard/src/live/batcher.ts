/**
 * Collects messages and hands them on once per frame of the screen, so that fifty wearers cost one rendering.
 * A hidden page gets no frames; there a slow timer empties the queue, so that it stays short and nothing is lost.
 */
const HIDDEN_MS = 1_000;

export class FrameBatcher<T> {
  private queue: T[] = [];
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly deliver: (batch: T[]) => void) {}

  push(item: T): void {
    this.queue.push(item);
    if (this.queue.length > 1) return;
    this.frame = requestAnimationFrame(this.run);
    this.timer = setTimeout(this.run, HIDDEN_MS);
  }

  stop(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.queue = [];
  }

  private readonly run = (): void => {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    const batch = this.queue;
    this.queue = [];
    if (batch.length > 0) this.deliver(batch);
  };
}
