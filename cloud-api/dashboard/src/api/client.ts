/** The API's resources, typed. */
import type { Auth } from './auth';
import * as decode from './decode';
import type {
  Alert,
  Bonds,
  ClinicEvent,
  ConsentText,
  Decision,
  Device,
  Gap,
  Gateway,
  LatestReading,
  Readings,
  ReadingType,
  Rule,
  StaffMember,
  User,
} from './types';

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

  /** Those that nobody has dealt with, newest first. */
  async openAlerts(): Promise<Alert[]> {
    return decode.items(await this.auth.request({ path: '/alerts', query: { open: 'true' } }), decode.alert);
  }

  async acknowledgeAlert(id: string): Promise<void> {
    await this.auth.request({ method: 'POST', path: `/alerts/${id}/acknowledge` });
  }

  async rules(): Promise<Rule[]> {
    return decode.items(await this.auth.request({ path: '/alert-rules' }), decode.rule);
  }

  async readingTypes(): Promise<ReadingType[]> {
    return decode.items(await this.auth.request({ path: '/reading-types' }), decode.readingType);
  }

  async addRule(rule: Record<string, unknown>): Promise<void> {
    await this.auth.request({ method: 'POST', path: '/alert-rules', body: rule });
  }

  async endRule(id: string): Promise<void> {
    await this.auth.request({ method: 'DELETE', path: `/alert-rules/${id}` });
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

  /** Says that a wearer whom a box added is a new one. */
  async confirm(userId: string, who: { displayName: string; externalId: string }): Promise<void> {
    await this.auth.request({
      method: 'POST',
      path: `/users/${userId}/confirm`,
      body: { display_name: who.displayName, external_id: who.externalId },
    });
  }

  /** Says that a wearer whom a box added is one known already. */
  async merge(userId: string, into: string): Promise<void> {
    await this.auth.request({ method: 'POST', path: `/users/${userId}/merge`, body: { into } });
  }

  async bonds(deviceId: string): Promise<Bonds> {
    return decode.bonds(await this.auth.request({ path: `/devices/${deviceId}/bonds` }));
  }

  async introduce(deviceId: string, gatewayId: string): Promise<void> {
    const body = { gateway_id: gatewayId };
    await this.auth.request({ method: 'POST', path: `/devices/${deviceId}/introductions`, body });
  }

  async revoke(bondId: string): Promise<void> {
    await this.auth.request({ method: 'POST', path: `/bonds/${bondId}/revoke` });
  }

  async decisions(deviceId: string): Promise<Decision[]> {
    const answer = await this.auth.request({ path: '/decisions', query: { device_id: deviceId, limit: 20 } });
    return decode.items(answer, decode.decision);
  }

  async me(): Promise<StaffMember> {
    return decode.staffMember(await this.auth.request({ path: '/staff/me' }));
  }

  async staff(): Promise<StaffMember[]> {
    return decode.items(await this.auth.request({ path: '/staff' }), decode.staffMember);
  }

  async setPin(pin: string, boxName: string): Promise<StaffMember> {
    const answer = await this.auth.request({ method: 'PUT', path: '/staff/me/pin', body: { pin, box_name: boxName } });
    return decode.staffMember(answer);
  }

  async removePin(memberId: string): Promise<void> {
    await this.auth.request({ method: 'DELETE', path: `/staff/${memberId}/pin` });
  }

  async consentTexts(): Promise<ConsentText[]> {
    return decode.items(await this.auth.request({ path: '/consent-texts' }), decode.consentText);
  }

  async addConsentText(text: { version: string; language: string; text: string }): Promise<void> {
    await this.auth.request({ method: 'POST', path: '/consent-texts', body: text });
  }
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
