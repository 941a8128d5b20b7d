/** What people are called: a name can be another's too, the clinic's number cannot. */
import type { User } from './api/types';

/** The clinic's number, where it says more than the name. */
export function numberOf(user: User | undefined): string | null {
  return user && user.externalId !== '' && user.externalId !== user.displayName ? user.externalId : null;
}

/** A wearer in one line of text: name and number. */
export function called(user: User | undefined, unknown: string): string {
  if (!user) return unknown;
  const number = numberOf(user);
  return number === null ? user.displayName : `${user.displayName} (${number})`;
}
