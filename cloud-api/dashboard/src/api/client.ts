/** The API's resources, typed. */
import type { Auth } from './auth';
import * as decode from './decode';
import type { ClinicEvent, Device, Gap, Gateway, LatestReading, Readings, User } from './types';

export class Client {
  constructor(private readonly auth: Auth) {}

  async users(): Promise<User[]> {
    return decode.items(await this.auth.request({ path: '/users' }), decode.user);
  }

  async devices(): Promise<Device[]> {
    return decode.items(await this.auth.request({ path: '/devices' }), decode.device);
  }

  async gateways(): Promise<Gateway[]> {
    return decode.items(await this.auth.request({ path: '/gateways' }), decode.gateway);
  }

  async latest(): Promise<LatestReading[]> {
    return decode.items(await this.auth.request({ path: '/readings/latest' }), decode.latest);
  }

  async events(query: { from: number; userId?: string; limit?: number }): Promise<ClinicEvent[]> {
    const { from, userId, limit = 100 } = query;
    const answer = await this.auth.request({
      path: '/events',
      query: { from: iso(from), limit, ...(userId ? { user_id: userId } : {}) },
    });
    return decode.items(answer, decode.event);
  }

  async acknowledge(event: ClinicEvent): Promise<ClinicEvent> {
    const answer = await this.auth.request({
      method: 'POST',
      path: '/events/acknowledge',
      body: { time: event.rawTime, user_id: event.userId, event_type: event.eventType },
    });
    return decode.event(answer);
  }

  async readings(
    query: { userId: string; readingType: string; from: number; to: number; points: number },
    signal?: AbortSignal,
  ): Promise<Readings> {
    const answer = await this.auth.request({
      path: '/readings',
      query: {
        user_id: query.userId,
        reading_type: query.readingType,
        from: iso(query.from),
        to: iso(query.to),
        points: Math.round(query.points),
      },
      ...(signal ? { signal } : {}),
    });
    return decode.readings(answer);
  }

  async gaps(query: { userId: string; from: number; to: number }, signal?: AbortSignal): Promise<Gap[]> {
    const answer = await this.auth.request({
      path: '/gaps',
      query: { user_id: query.userId, from: iso(query.from), to: iso(query.to) },
      ...(signal ? { signal } : {}),
    });
    return decode.items(answer, decode.gap);
  }
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
