/**
 * Fetches the last minutes of the series that come into view, for their sparklines.
 *
 * Each series is asked for by itself: one that is slow or fails holds up no other, and one that fails is asked for
 * again until it is there or the server says that it never will be. Few are under way at once, however many tiles come
 * into view. An answer to a question from before `refill` is not used: it would end where the hole begins, and the
 * points that fill the hole would then count as known.
 */
import { Problem } from '../api/http';
import type { Point } from '../api/types';

const AT_ONCE = 6;
const RETRY_MS = 2_000;
const LONGEST_RETRY_MS = 60_000;

export interface Source {
  fetch(userId: string, readingType: string): Promise<readonly Point[]>;
  deliver(userId: string, readingType: string, points: readonly Point[]): void;
}

interface Question {
  userId: string;
  readingType: string;
  failures: number;
}

export class History {
  private readonly asked = new Set<string>();
  private queue: Question[] = [];
  private readonly retries = new Set<ReturnType<typeof setTimeout>>();
  private running = 0;
  private generation = 0;
  private stopped = false;

  constructor(
    private readonly types: readonly string[],
    private readonly source: Source,
    private readonly random: () => number = Math.random,
  ) {}

  /** Asks once for this wearer's series, however often it is called. */
  want(userId: string): void {
    if (this.asked.has(userId)) return;
    this.asked.add(userId);
    for (const readingType of this.types) this.queue.push({ userId, readingType, failures: 0 });
    this.pump();
  }

  /** Asks again for all that was wanted; the caller has emptied the series. */
  refill(): void {
    const wanted = [...this.asked];
    this.forget();
    for (const userId of wanted) this.want(userId);
  }

  stop(): void {
    this.stopped = true;
    this.forget();
  }

  private forget(): void {
    this.generation++;
    this.asked.clear();
    this.queue = [];
    for (const timer of this.retries) clearTimeout(timer);
    this.retries.clear();
  }

  private pump(): void {
    while (this.running < AT_ONCE && !this.stopped) {
      const question = this.queue.shift();
      if (!question) return;
      this.running++;
      void this.ask(question, this.generation).finally(() => {
        this.running--;
        this.pump();
      });
    }
  }

  private async ask(question: Question, generation: number): Promise<void> {
    try {
      const points = await this.source.fetch(question.userId, question.readingType);
      if (generation === this.generation) this.source.deliver(question.userId, question.readingType, points);
    } catch (error) {
      if (generation === this.generation && mayPass(error)) this.later({ ...question, failures: question.failures + 1 });
    }
  }

  private later(question: Question): void {
    const wait = Math.min(LONGEST_RETRY_MS, RETRY_MS * 2 ** (question.failures - 1)) * (1 + this.random());
    const timer = setTimeout(() => {
      this.retries.delete(timer);
      this.queue.push(question);
      this.pump();
    }, wait);
    this.retries.add(timer);
  }
}

/** Whether asking again may help: not when the server understood the question and refused it. */
function mayPass(error: unknown): boolean {
  return !(error instanceof Problem) || error.status >= 500 || error.status === 429 || error.status === 408;
}
